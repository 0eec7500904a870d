"""The paper's evaluations (Fast BLT §4.2, §5.4, §6):  python -m evaluation TASK"""
