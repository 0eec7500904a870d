"""Which flags of drafting a mode reads: what it does not read is refused, not ignored."""

from dataclasses import fields, replace

from generate import Prefix
from measure.rounds import PaperPrefix
from speculate import MODES, THRESHOLDS, Drafting, settled
from support.checkpoint import check_block_size
from support.terminal import BadInput


def modes_of(model):
    """The modes that a model can generate in -> list of names, plain BLT first."""
    return [mode for mode in MODES if model.config.block_size or not MODES[mode].fills_blocks]


def given_in(drafting):
    """The fields of a Drafting that are not left to the mode -> list of names."""
    return [known.name for known in fields(Drafting) if getattr(drafting, known.name) is not None]


def read_by(mode, model, drafting):
    """The fields of a Drafting that a mode reads -> set of names.

    Of the two thresholds it reads the one of the rule that fills its blocks, if that has one.
    """
    names = set(MODES[mode].defaults)
    if MODES[mode].fills_blocks:
        rule = settled(mode, model, drafting)["unmask"]
        names -= {"alpha", "gamma"} - {THRESHOLDS.get(rule)}
    return names


def only_read(mode, model, drafting):
    """The same Drafting without what a mode does not read."""
    names = read_by(mode, model, drafting)
    others = [name for name in given_in(drafting) if name not in names]
    return replace(drafting, **dict.fromkeys(others))


# ---- what is refused


def check_drafting(mode, model, drafting, rounds="ours"):
    """Raises BadInput for what is given and not read, and where a model can't fill such blocks.

    rounds: "paper" asks for Algorithm 1 to the letter, which says nothing of plain BLT.
    """
    names = read_by(mode, model, drafting)
    for name in given_in(drafting):
        if name not in names:
            raise BadInput(f"--mode {mode} {unread(name, mode, model, drafting)}")
    if rounds == "paper" and not MODES[mode].paper_calls:
        readers = [other for other in modes_of(model) if MODES[other].paper_calls]
        advice = f"leave it out, or give --mode {' or '.join(readers)}"
        raise BadInput(f"--mode {mode} has no rounds and reads no --rounds paper: {advice}")
    if MODES[mode].fills_blocks:
        chosen = settled(mode, model, drafting)
        check_block_size(model, chosen["block_size"], chosen["unmask"])


def check_compared(model, drafting):
    """Raises BadInput for what is given and read by none of the modes that a model has.

    -> {mode: what that mode reads of it, a Drafting}.
    """
    chosen = {mode: only_read(mode, model, drafting) for mode in modes_of(model)}
    for name in given_in(drafting):
        if any(name in given_in(part) for part in chosen.values()):
            continue
        check_block_size(model, model.config.block_size)  # a plain BLT has no blocks to fill
        # What is left is the threshold of a rule that no mode unmasks by.
        raise BadInput(f"--compare reads no {flag_of(name)} here: {other_rules(name, model)}")
    for mode, part in chosen.items():
        check_drafting(mode, model, part)
    return chosen


def unread(name, mode, model, drafting):
    """That a mode does not read a field which is given, and what to do -> words."""
    if name in MODES[mode].defaults:  # it is the threshold of another rule
        rule = settled(mode, model, drafting)["unmask"]
        return f"with --unmask {rule} reads no {flag_of(name)}: {other_rules(name, model)}"
    advice = "leave it out"
    readers = [other for other in modes_of(model) if name in MODES[other].defaults]
    if readers:
        advice += f", or give --mode {' or '.join(readers)}"
    return f"reads no {flag_of(name)}: {advice}"


def other_rules(name, model):
    """Advice for a threshold that is not read: which rules of a model's would read it."""
    rules = [rule for rule, threshold in THRESHOLDS.items() if threshold == name]
    if not model.config.chain_width:
        rules = [rule for rule in rules if rule != "chained"]
    return f"leave it out, or give --unmask {' or '.join(rules)}"


def flag_of(name):
    """The flag of a field of Drafting."""
    return "--" + name.replace("_", "-")


# ---- what a mode runs on


def state_for(mode, machine):
    """A new state for one generation in a mode.

    Plain BLT has no rounds: beside modes that run the paper's it takes the plain state as it is.
    """
    if machine.kind is PaperPrefix and not MODES[mode].paper_calls:
        return Prefix(machine.model, machine.patcher)
    return machine.state()
