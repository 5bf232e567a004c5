"""Change the heart of the project in small ways, one at a time, and report which changes its tests notice.

    python tools/mutate.py [MODULE …] [--count N] [--seed S]

A mutant is the source with one small change: a comparison flipped, an operator exchanged, a term, an argument or a
statement dropped, a constant changed, a condition negated. Each runs in a copy of the tree, against the tests that
`TARGETS` names for its module. docs/testing.md explains the result.

The processes that run mutants are forked from one that has imported torch, so a mutant costs its tests and little more.
Which mutants are drawn depends on the changed lines and the seed only: editing a module leaves those elsewhere alone.
"""

import argparse
import ast
import hashlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = "src/iakd"
COPIED = ("src", "tests", "workflow", "docs", "params.yaml", "pyproject.toml")
LOSSES = {  # names of files in tests/distillation, without test_ and .py
    "ab": "first_phases weighted_terms?ab",
    "at": "map_losses weighted_terms?at",
    "blockkd": "hybrid_baselines?blockkd",
    "cc": "relations_of_batches weighted_terms?cc",
    "crd": "pooling?crd crd weighted_terms?crd",
    "ctkd": "logits weighted_terms?ctkd",
    "dist": "logits weighted_terms?dist",
    "dkd": "logits weighted_terms?dkd",
    "fcfd": "hybrid_baselines?fcfd",
    "fitnet": "map_losses",
    "fsp": "first_phases weighted_terms?fsp",
    "ft": "weighted_terms?ft first_phases",
    "hints": "hints weighted_terms?hints",
    "iakd": "iakd",
    "kcd": "kcd",
    "kd": "losses logits weighted_terms?kd",
    "lskd": "logits weighted_terms?lskd",
    "maps": "pooling layers map_losses tokens",
    "mlkd": "logits mlkd",
    "mutual": "mutual",
    "nst": "map_losses weighted_terms?nst",
    "ot": "layers?ot weighted_terms?ot ot",
    "phases": "first_phases weighted_terms?ft",
    "pkt": "relations_of_batches weighted_terms?pkt",
    "reviewkd": "weighted_terms?review reviewkd",
    "rkd": "relations_of_batches weighted_terms?rkd",
    "simkd": "layers?simkd simkd",
    "sp": "relations_of_batches weighted_terms?sp",
    "vid": "map_losses weighted_terms?vid",
}

# Group of modules → module → its tests, the fastest first. In a test file, `::name` chooses one test, `?words` passes
# `words` to pytest's -k.
TARGETS: dict[str, dict[str, list[str]]] = {
    "config/schedule": {
        "config/schedule.py": [
            "tests/config/test_schedule_kinds.py",
            "tests/interactive/test_schedule.py",
            "tests/test_params.py::test_the_schema_in_the_repository_is_the_models",
        ],
    },
    "interactive/schedule": {
        "interactive/schedule.py": [
            "tests/interactive/test_schedule.py",
            "tests/interactive/test_schedule_phases.py",
        ],
    },
    "models/pairing": {
        "models/pairing.py": [
            "tests/interactive/test_pairing_ends.py",
            "tests/interactive/test_pairing.py",
            "tests/interactive/test_branches.py",
            "tests/interactive/test_hybrid.py?teacher",
            "tests/interactive/test_zoo_pairs.py?initialising",
        ],
    },
    "training/timeline": {"training/timeline.py": ["tests/training/test_timeline.py"]},
    "data/splits": {"data/splits.py": ["tests/data/test_splits.py", "tests/data/test_split_parts.py"]},
    "interactive/swap_sampler": {
        "interactive/swap_sampler.py": [
            "tests/interactive/test_swap_sampler.py",
            "tests/interactive/test_granularity.py",
            "tests/interactive/test_hybrid.py",
        ],
    },
    "interactive/paths": {"interactive/paths.py": ["tests/interactive/test_paths.py"]},
    "interactive/hybrid": {
        "interactive/hybrid.py": [
            "tests/interactive/test_branches.py",
            "tests/interactive/test_granularity.py",
            "tests/interactive/test_hybrid.py",
            "tests/interactive/test_paths.py",
            "tests/distillation/test_hybrid_baselines.py?fcfd",
            "tests/interactive/test_zoo_pairs.py",
        ],
    },
    "distillation/losses": {
        f"distillation/losses/{name}.py": [f"tests/distillation/test_{file}" for file in files.split()]
        for name, files in LOSSES.items()
    },
    "distillation/loss": {
        "distillation/loss.py": [
            "tests/distillation/test_losses.py",
            "tests/distillation/test_first_phases.py",
            "tests/distillation/test_mutual.py",
            "tests/distillation/test_layers.py",
            "tests/distillation/test_weighted_terms.py",
            "tests/training/test_distiller.py",
        ],
    },
    "distillation/distiller": {
        "distillation/distiller.py": [
            "tests/training/test_distiller.py",
            "tests/distillation/test_logits.py",
            "tests/distillation/test_mlkd.py",
            "tests/distillation/test_first_phases.py",
            "tests/interactive/test_granularity.py",
        ],
    },
    "training/optimizer": {"training/optimizer.py": ["tests/training/test_optimizer.py"]},
    "training/trainer": {"training/trainer.py": ["tests/training/test_trainer.py", "tests/training/test_loop.py"]},
    "tuning/decisions": {
        "tuning/decisions.py": ["tests/tuning/test_search_space.py", "tests/tuning/test_decisions.py"],
    },
    "reporting/statistics": {"reporting/statistics.py": ["tests/reporting/test_statistics.py"]},
}

# Mutants that behave as the original, reviewed one by one: module → (line before, line after) → why.
EQUIVALENT: dict[str, dict[tuple[str, str], str]] = {
    "interactive/schedule.py": {
        (
            "p = np.clip(base[:, None] + schedule.slope * depth[None, :], 0.0, 1.0)",
            "p = np.clip(0.0, base[:, None] + schedule.slope * depth[None, :], 1.0)",
        ): "min(max(0, p), 1) either way",
        (
            "return [0, *(step for step in lr_drops if 0 < step < student_only)]",
            "return [0, *(step for step in lr_drops if 0 <= step < student_only)]",
        ): "a second phase that begins at step 0 hides the first",
        (
            "return [0, *(step for step in lr_drops if 0 < step < student_only)]",
            "return [0, *(step for step in lr_drops if 0 < step <= student_only)]",
        ): "from there on p is 1",
        (
            "end = starts[phase + 1] if phase + 1 < len(starts) else max(student_only, begin + 1)",
            "end = starts[phase + 1] if phase + 1 < len(starts) else max(student_only, begin + 2)",
        ): "matters to a phase of one step only, whose progress is 0",
    },
    "interactive/swap_sampler.py": {
        (
            "for slot, p in enumerate(values.reshape(-1, self.slots).mean(axis=0))",
            "for slot, p in enumerate(values.reshape(-2, self.slots).mean(axis=0))",
        ): "numpy takes any negative size as the one to be found",
    },
    "models/pairing.py": {
        (
            "more, fewer = (teacher, student) if len(teacher) > len(student) else (student, teacher)",
            "more, fewer = (teacher, student) if len(teacher) >= len(student) else (student, teacher)",
        ): "networks of equally many stages have returned before",
    },
    "training/timeline.py": {
        (
            "rest = (step - warmup) / max(1, self.total - warmup)",
            "rest = (step - warmup) / max(2, self.total - warmup)",
        ): "matters where one step is left, whose progress is 0",
        (
            "rest = (step - warmup) / max(1, self.total - warmup)",
            "rest = (step - warmup) / max(0, self.total - warmup)",
        ): "matters beyond the last step only",
    },
    "data/splits.py": {
        (
            "wanted, remainders = np.divmod(counts * n, max(n_images, 1))",
            "wanted, remainders = np.divmod(counts * n, max(n_images, 2))",
        ): "one image is given by its remainder instead of its share",
        (
            "wanted, remainders = np.divmod(counts * n, max(n_images, 1))",
            "wanted, remainders = np.divmod(counts * n, max(n_images, 0))",
        ): "there are no counts to divide then",
        (
            "if given_images is None or given_labels is None:",
            "if ((given_images is None)):",
        ): "SourceData has both or neither",
        (
            "if given_images is None or given_labels is None:",
            "if ((given_labels is None)):",
        ): "SourceData has both or neither",
    },
    "distillation/distiller.py": {
        (
            "if not (self.hybrid and self.options.bn_reestimate):",
            "if not (((self.options.bn_reestimate))):",
        ): "config refuses the option without iakd",
    },
    "distillation/loss.py": {
        (
            "(outputs.student.blocks[pair.student.last].float(), outputs.teacher.blocks[pair.teacher.last].float())",
            "(outputs.student.blocks[pair.student.last], outputs.teacher.blocks[pair.teacher.last].float())",
        ): "as_maps makes them float32, too",
    },
    "training/optimizer.py": {
        (
            "groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True, capturable=capturable",
            "groups, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=False, capturable=capturable",
        ): "the same update, slower",
        (
            "capturable: bool = False,",
            "capturable: bool = True,",
        ): "the same update, in a form that CUDA graphs can record",
        (
            "floating = [pair for pair in self._pairs if pair[0].is_floating_point() and self.started]",
            "floating = [pair for pair in self._pairs if pair[1].is_floating_point() and self.started]",
        ): "one is a copy of the other",
    },
    "distillation/losses/at.py": {
        (
            "return unit(maps.float().square().mean(1).flatten(1))",
            "return unit(maps.float().square().sum(1).flatten(1))",
        ): "the vector is made of length 1 afterwards",
    },
    "distillation/losses/dist.py": {
        (
            "inter, intra = relations(outputs.student_logits, outputs.teacher_logits, self.options.temperature)",
            "inter, intra = relations(outputs.teacher_logits, outputs.student_logits, self.options.temperature)",
        ): "a correlation is symmetric",
    },
    "distillation/losses/kcd.py": {
        (
            "self.counts[images] = self.counts[images] + 1",
            "self.counts[images] = self.counts[images] + 2",
        ): "all scores are multiplied by the same number",
    },
    "reporting/statistics.py": {
        (
            "return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)",
            "return ((self.high is not None) and (self.low > 0 or self.high < 0))",
        ): "there are both bounds or neither",
    },
    "training/trainer.py": {
        (
            'row["images_per_s"] = round(images / max(self.epoch_seconds, 1e-9), 1)',
            'row["images_per_s"] = round(images / max(self.epoch_seconds, 2e-09), 1)',
        ): "no epoch is as short",
    },
    "distillation/losses/crd.py": {
        (
            "keys.masked_fill_(self.labels == classes[:, None], -1.0)",
            "keys.masked_fill_(self.labels == classes[:, None], -2.0)",
        ): "below every key, as before",
    },
}


# --- mutants ---


@dataclass(frozen=True)
class Mutant:
    """A module with one change."""

    module: str
    line: int
    before: str  # the changed line, without indentation; several as one
    after: str
    source: bytes  # of the whole module

    @property
    def reason(self) -> str | None:
        """Why it behaves as the original, if it is known to."""
        return EQUIVALENT.get(self.module, {}).get((self.before, self.after))

    def __str__(self) -> str:
        known = f"\n    equivalent: {self.reason}" if self.reason else ""
        return f"{SOURCES}/{self.module}:{self.line}\n  - {self.before}\n  + {self.after}{known}"


COMPARISONS = {
    ast.Lt: ("<", ["<=", ">="]),
    ast.LtE: ("<=", ["<", ">"]),
    ast.Gt: (">", [">=", "<="]),
    ast.GtE: (">=", [">", "<"]),
    ast.Eq: ("==", ["!="]),
    ast.NotEq: ("!=", ["=="]),
    ast.Is: ("is", ["is not"]),
    ast.IsNot: ("is not", ["is"]),
    ast.In: ("in", ["not in"]),
    ast.NotIn: ("not in", ["in"]),
}
OPERATORS = {
    ast.Add: ("+", ["-"]),
    ast.Sub: ("-", ["+"]),
    ast.Mult: ("*", ["/"]),
    ast.Div: ("/", ["*"]),
    ast.FloorDiv: ("//", ["*"]),
    ast.Mod: ("%", ["*"]),
    ast.Pow: ("**", ["*"]),
    ast.BitAnd: ("&", ["|"]),
    ast.BitOr: ("|", ["&"]),
}
CALLS = {
    "max": "min",
    "min": "max",
    "any": "all",
    "all": "any",
    "amax": "amin",
    "argmax": "argmin",
    "argmin": "argmax",
    "mean": "sum",
    "sum": "mean",
    "ceil": "floor",
    "floor": "ceil",
    "round": "int",
    "sorted": "list",
    "cos": "sin",
    "maximum": "minimum",
    "minimum": "maximum",
    "log_softmax": "softmax",
    "square": "abs",
    "abs": "square",
}
SYMMETRIC = ("max", "min", "maximum", "minimum", "isinstance")  # calls whose arguments are not swapped


class Finder(ast.NodeVisitor):
    """Collects the changes of a module, as (first byte, byte after the last, replacement)."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.changes: list[tuple[int, int, str]] = []

    def span(self, node: ast.AST) -> tuple[int, int]:
        """First byte of a node, and the one after its last."""
        first = self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return first, self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        """The source of a node."""
        first, end = self.span(node)
        return self.source[first:end].decode()

    def replace(self, node: ast.AST, replacement: str) -> None:
        self.changes.append((*self.span(node), replacement))

    def exchange(self, left: ast.AST, right: ast.AST, old: str, new: list[str]) -> None:
        """Exchange the operator between two nodes."""
        start, end = self.span(left)[1], self.span(right)[0]
        found = re.search(r"\s+".join(map(re.escape, old.split())), self.source[start:end].decode())
        assert found is not None, self.source[start:end]
        self.changes += [(start + found.start(), start + found.end(), operator) for operator in new]

    def negate(self, test: ast.expr) -> None:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            self.replace(test, f"({self.text(test.operand)})")
        else:
            self.replace(test, f"(not ({self.text(test)}))")

    # statements

    def visit_body(self, body: list[ast.stmt]) -> None:
        for statement in body:
            documents = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if documents or isinstance(statement, ast.Assert | ast.Import | ast.ImportFrom):
                continue
            dropped = isinstance(statement, ast.AugAssign | ast.Raise | ast.Continue | ast.Break) or (
                isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            )
            if isinstance(statement, ast.Assign):
                targets = statement.targets
                dropped = all(isinstance(target, ast.Subscript) for target in targets)
            if dropped:
                self.replace(statement, "pass")
            self.visit(statement)

    def generic_visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "bases", "format_spec"):
                continue
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                self.visit_body(value)
            elif isinstance(value, list):
                for each in value:
                    if isinstance(each, ast.AST):
                        self.visit(each)
            elif isinstance(value, ast.AST):
                self.visit(value)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Words of an error are not behaviour."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Nor those of a message."""

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.value, ast.Name) or not node.value.id[:1].isupper():  # not a type
            self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self.negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.negate(test)
        self.generic_visit(node)

    # expressions

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, node.comparators, strict=False):
            self.exchange(left, right, *COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in OPERATORS:
            self.exchange(node.left, node.right, *OPERATORS[type(node.op)])
        self.replace(node, f"({self.text(node.left)})")
        self.replace(node, f"({self.text(node.right)})")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.exchange(left, right, old, [new])
        for value in node.values:
            self.replace(node, "(" + f" {old} ".join(f"({self.text(v)})" for v in node.values if v is not value) + ")")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self.replace(node, f"({self.text(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        match node.value:
            case bool():
                self.replace(node, str(not node.value))
            case int():
                self.replace(node, str(node.value + 1))
                if node.value > 0:
                    self.replace(node, str(node.value - 1))
            case float():
                self.replace(node, str(2 * node.value if node.value else 1.0))

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        for one, two in zip(node.args, node.args[1:], strict=False):
            words = any(
                isinstance(argument, ast.Constant) and isinstance(argument.value, str) for argument in (one, two)
            )
            if name in SYMMETRIC or words or isinstance(one, ast.Starred) or isinstance(two, ast.Starred):
                continue
            first, end = self.span(one)[0], self.span(two)[1]
            between = self.source[self.span(one)[1] : self.span(two)[0]].decode()
            self.changes.append((first, end, self.text(two) + between + self.text(one)))
        if name in CALLS:
            end = self.span(node.func)[1]
            self.changes.append((end - len(name), end, CALLS[name]))
        if isinstance(node.func, ast.Attribute) and name in ("detach", "clamp", "clamp_min", "float", "T", "copy"):
            self.replace(node, self.text(node.func.value))
        self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # of zip: an assertion
            self.generic_visit(node)


def mutants(module: str, root: Path = ROOT) -> Iterator[Mutant]:
    """All mutants of a module, each once."""
    source = (root / SOURCES / module).read_bytes()
    tree = ast.parse(source)
    finder = Finder(source)
    finder.generic_visit(tree)
    seen = {ast.dump(tree)}
    for first, end, replacement in finder.changes:
        changed = source[:first] + replacement.encode() + source[end:]
        try:
            dump = ast.dump(ast.parse(changed))
        except SyntaxError:
            continue
        if dump in seen:
            continue
        seen.add(dump)
        start = source.rfind(b"\n", 0, first) + 1
        stop = source.index(b"\n", end)
        lines = source[start:stop], source[start:first] + replacement.encode() + source[end:stop]
        before, after = (" ".join(each.decode().split()) for each in lines)
        yield Mutant(module, source.count(b"\n", 0, first) + 1, before, after, changed)


def drawn(modules: list[str], count: int, seed: int) -> list[Mutant]:
    """`count` mutants of these modules, in the order of the source."""
    every = [mutant for module in modules for mutant in mutants(module)]
    seen: Counter[tuple[str, str, str]] = Counter()

    def key(mutant: Mutant) -> bytes:
        what = (mutant.module, mutant.before, mutant.after)
        seen[what] += 1
        return hashlib.sha256(repr((seed, *what, seen[what])).encode()).digest()

    keys = [key(mutant) for mutant in every]
    chosen = sorted(sorted(range(len(every)), key=keys.__getitem__)[:count])
    return [every[position] for position in chosen]


# --- running them ---


def run_tests(copy: Path, tests: list[str], timeout: float, log: Path) -> tuple[bool, float]:
    """Whether tests pass in the copy of the tree, and how long they took; False where they exceed `timeout` seconds."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 3
        try:
            code = int(_pytest(copy, tests))
        finally:
            os._exit(code)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - started > timeout:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False, timeout
        time.sleep(0.02)
    return os.waitstatus_to_exitcode(status) == 0, time.monotonic() - started


def _pytest(copy: Path, tests: list[str]) -> int:
    """Run the tests one file after the other, up to the first failure; the exit code."""
    import pytest

    os.chdir(copy)
    sys.path.insert(0, str(copy / "src"))
    for test in tests:
        path, _, words = test.partition("?")
        path = path if ".py" in path else f"{path}.py"
        chosen = ["-k", words] if words else []
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", "--rootdir", str(copy), path, *chosen])
        if code:
            return int(code)
    return 0


def warm_up() -> None:
    """Import what takes its time, and nothing of iakd."""
    import numpy  # noqa: F401
    import pydantic  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch  # noqa: F401
    import torchvision  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description="Report which small changes of the sources the tests notice.")
    parser.add_argument(
        "modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TARGETS)}, or a file of these; default: all"
    )
    parser.add_argument("--count", type=int, default=0, help="mutants of each module; default: a twentieth, 10 to 45")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn; default 0")
    parser.add_argument("--list", action="store_true", help="print the mutants instead of running them")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what noticed each mutant, and the time")
    arguments = parser.parse_args()
    names = set(arguments.modules or TARGETS)
    groups = {group: [m for m in TARGETS[group] if names & {group, m, m.removesuffix(".py")}] for group in TARGETS}
    unknown = names - {name for group, modules in groups.items() for m in modules for name in (group, m, m[:-3])}
    if unknown:
        parser.error(f"unknown module {', '.join(sorted(unknown))}; known: {', '.join(TARGETS)}")
    os.environ.update(OMP_NUM_THREADS="1", PYTHONHASHSEED="0")
    sample: dict[str, list[Mutant]] = {}
    for group, modules in groups.items():
        if not modules:
            continue
        total = sum(1 for module in modules for _ in mutants(module))
        sample[group] = drawn(modules, arguments.count or min(45, max(10, total // 20)), arguments.seed)
        print(f"{group}: {len(sample[group])} of {total} mutants", flush=True)
    if arguments.list:
        for mutant in (mutant for chosen in sample.values() for mutant in chosen):
            print(mutant)
        return
    warm_up()
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        rows = _run(sample, Path(folder), arguments.verbose)
    _report(rows)


def _run(sample: dict[str, list[Mutant]], folder: Path, verbose: bool) -> dict[str, list[tuple[Mutant, bool]]]:
    """Each group's mutants, and which of them were noticed."""
    copy, log = folder / "tree", folder / "log"
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            copy.mkdir(exist_ok=True)
            shutil.copy2(source, copy / name)
    os.environ.update(PYTHONPATH=str(copy / "src"), PYTHONDONTWRITEBYTECODE="1")
    sys.pycache_prefix = str(folder / "bytecode")
    usual: dict[tuple[str, ...], float] = {}
    rows: dict[str, list[tuple[Mutant, bool]]] = {}
    for group, chosen in sample.items():
        rows[group] = []
        for mutant in chosen:
            tests = TARGETS[group][mutant.module]
            if tuple(tests) not in usual:
                sys.dont_write_bytecode = False
                passed, usual[tuple(tests)] = run_tests(copy, tests, 600, log)
                sys.dont_write_bytecode = True
                if not passed:
                    print(f"{', '.join(tests)}: not passed before any change; left out\n{log.read_text()}", flush=True)
                    usual[tuple(tests)] = 0.0
            if not usual[tuple(tests)]:
                continue
            path = copy / SOURCES / mutant.module
            original, times = path.read_bytes(), path.stat()
            path.write_bytes(mutant.source)
            os.utime(path, (0, 0))  # so that no bytecode of the original is used
            passed, seconds = run_tests(copy, tests, 10 + 3 * usual[tuple(tests)], log)
            path.write_bytes(original)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            rows[group].append((mutant, not passed))
            if verbose:
                found = re.findall(r"^(?:E  |FAILED|ERROR) .*", log.read_text(), re.MULTILINE)
                print(f"{mutant}\n  {seconds:.1f} s, {found[0] if found else 'no failure'}", flush=True)
            elif passed:
                print(mutant, flush=True)
        print(f"{group}: {sum(noticed for _, noticed in rows[group])} of {len(rows[group])} noticed", flush=True)
    return rows


def _report(rows: dict[str, list[tuple[Mutant, bool]]]) -> None:
    print("\n| module | mutants | change behaviour | noticed | % |\n|---|---:|---:|---:|---:|")
    sums = [0, 0, 0]
    for group, results in rows.items():
        noticed = sum(found for _, found in results)
        real = sum(found or not mutant.reason for mutant, found in results)
        sums = [total + number for total, number in zip(sums, (len(results), real, noticed), strict=True)]
        print(f"| {group} | {len(results)} | {real} | {noticed} | {100 * noticed / max(1, real):.0f} |")
    print(f"| all | {sums[0]} | {sums[1]} | {sums[2]} | {100 * sums[2] / max(1, sums[1]):.0f} |")


if __name__ == "__main__":
    main()
