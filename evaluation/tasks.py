"""The tasks that end with one line: bits per byte, multiple choice, translation and code.

Each is a function of model, patcher and the options that its flags made.
"""

import lzma
import math
import statistics
import sys
import time

from tqdm import tqdm

from data import corpus_of, document_ids
from diffusion import masked_accuracy
from evaluation.answers import Runner, answer_all, code_score, translation_score
from evaluation.benchmarks import CHOICES, PROGRAMS, TRANSLATIONS
from evaluation.items import as_bytes
from evaluation.likelihood import choice_log_likelihoods, cloze
from evaluation.miniature import TASKS, test_items
from evaluation.report import print_rows, report, standard_error, taken
from generate import Generation, bits_per_byte, parameter_sizes
from speculate import check_mode
from support import checkpoint
from support.terminal import BadInput, progress, table


def held_out_texts(options):
    """--data whole, or the validation split of the checkpoint's corpus -> (list of bytes, name)."""
    if options.data:
        corpus = corpus_of(options.data)
        return [data for _, data in corpus.documents], corpus.origin
    saved = checkpoint.load(checkpoint.find(options.checkpoint))
    # An exported checkpoint keeps only where its text came from, one of training all it was asked.
    corpus = corpus_of(saved["data"] if "data" in saved else saved["asked"]["data"])
    if corpus.sha256 != saved["corpus"]["sha256"]:
        print(
            f"note: {corpus.origin} differs from what this checkpoint was trained on; "
            "some of it may not be held out",
            file=sys.stderr,
        )
    return corpus.split()[1], f"validation split of {corpus.origin}"


def items_folder(options):
    """--items, which every set of a public benchmark needs."""
    if not options.items:
        raise BadInput(f"--set {options.set} needs --items DIR, the folder that holds its files")
    return options.items


# ---- bits per byte


def evaluate_bpb(model, patcher, options):
    """Predict every byte once, from all that the model's windows hold before it.

    A model of blocks also guesses wholly masked ones, whose loss is shown by position.
    """
    texts, name = held_out_texts(options)
    texts = texts[: options.limit]
    documents, size = [document_ids(text) for text in texts], sum(map(len, texts))
    began = time.perf_counter()
    total = size + len(texts)  # every document ends with EOS
    with progress("bits per byte", total) as bar:
        bits = bits_per_byte(model, patcher, documents, bar.update)
    xz = 8 * len(lzma.compress(b"".join(texts), preset=6)) / size
    seconds = time.perf_counter() - began
    score = {"bits_per_byte": bits, "xz_bits_per_byte": xz}
    K = model.config.block_size
    if K:
        # The starts of a few documents are enough for these.
        starts = [document[:4000] for document in documents[:20]]
        accuracy, nats = masked_accuracy(model, patcher, starts, K)
        masked_bits = [n / math.log(2) for n in nats]
        score |= {"masked_bits_by_position": masked_bits, "masked_accuracy_by_position": accuracy}
    if options.json:
        print_rows([{"task": "bpb", "text": name, "bytes": size, "seconds": seconds, **score}])
        return
    if K:
        print_masked(masked_bits, accuracy)
    print(
        f"{name}: {bits:.3f} bits per byte on {size:,} bytes in {len(texts)} documents, "
        f"{seconds:.1f} s, {size / seconds:.0f} bytes/s; "
        f"xz -6 of the same bytes, packed as one: {xz:.3f}"
    )


def print_masked(bits, accuracy):
    """Bits per byte and share of right guesses (lists of K), by position in a masked block."""
    header = ["position in a wholly masked block", *range(1, len(bits) + 1)]
    rows = [
        ["bits per byte", *(f"{b:.2f}" for b in bits)],
        ["right", *(f"{share:.0%}" for share in accuracy)],
    ]
    print(table(header, rows) + "\n")


# ---- multiple choice


def evaluate_likelihood(model, patcher, options):
    """Take the choice of the greatest log-likelihood, as a sum and per byte.

    The sum favours short choices, the mean over bytes does not; publications report either.
    """
    if options.set == "cloze":
        items = cloze(held_out_texts(options)[0])
    else:
        items = CHOICES[options.set](items_folder(options))
    right, right_by_byte, made = [], [], []
    sizes = parameter_sizes(model, patcher)
    for item in tqdm(taken(items, options.limit), desc=options.set, leave=False):
        began = time.perf_counter()
        sums, counters = choice_log_likelihoods(model, patcher, item)
        made.append(Generation([], counters, time.perf_counter() - began, sizes))
        lengths = [max(1, len(as_bytes(choice))) for choice in item.choices]
        by_byte = [total / length for total, length in zip(sums, lengths)]
        right.append(sums.index(max(sums)) == item.gold)
        right_by_byte.append(by_byte.index(max(by_byte)) == item.gold)
    score = {
        "accuracy": statistics.mean(right),
        "accuracy_se": standard_error(right),
        "accuracy_per_byte": statistics.mean(right_by_byte),
        "accuracy_per_byte_se": standard_error(right_by_byte),
    }
    cost = Generation.total(made).cost()
    report(score, cost, options, set=options.set, items=len(right))


# ---- translation and code


def evaluate_translation(model, patcher, options):
    """Translate into English, behind four worked examples.

    The items are number phrases that are generated, or the sentences of a benchmark.
    """
    if options.set in TASKS:
        generated = test_items(options.set, options.limit)
    else:
        generated = TRANSLATIONS[options.set](items_folder(options))
    score_answers(model, patcher, options, translation_score, *generated)


def evaluate_code(model, patcher, options):
    """Complete programs and run them with their tests, if the user has said that this may be done.

    The items are one-line functions that are generated, or the tasks of a benchmark.
    """
    if not options.allow_code_execution:
        raise BadInput(
            "this runs programs that a model wrote: read the warning in "
            "`python -m evaluation code --help`, then say --allow-code-execution"
        )
    if options.set in TASKS:
        score_answers(model, patcher, options, code_score, *test_items(options.set, options.limit))
    else:
        programs = PROGRAMS[options.set](items_folder(options))
        score_answers(model, patcher, options, code_score, None, [], programs)


def score_answers(model, patcher, options, score, language, examples, items):
    """Answer the items in the mode asked for and report score(texts, items).

    language: of the sources to translate, None for programs. examples: worked ones, put in front.
    """
    check_mode(options.mode, model, options)
    items = taken(items, options.limit)
    runner = Runner(options.mode, model, patcher, options.mode, options)
    (answers,) = answer_all([runner], language, examples, items)
    texts, made = zip(*answers)
    cost = Generation.total(made).cost()
    known = {"set": options.set, "mode": options.mode, "items": len(items)}
    report(score(texts, items), cost, options, **known)
