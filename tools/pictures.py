"""Draw the pictures of what other programs show: `make pictures`, or ARGS=… with some of these names.

All but the first need chromium, of which nothing is asked that is not on this machine.

terminal     docs/terminal.svg             `make run` in a terminal, half-way, drawn without running anything
dashboard    docs/optuna-dashboard.png     a study of a toy whose trainings take milliseconds
plots        docs/dvc-plots.png            `make plots ARGS="diff HEAD"`, with made-up accuracies
workflow     docs/snakemake-report.png     `snakemake --report` of a short experiment, which takes a minute or two
             docs/mlflow-runs.png          `make mlflow` with the runs of that experiment: the table
             docs/mlflow-chart.png         and the curves
report       docs/report.png               the report of made-up results; the same on a phone and in dark mode
             docs/report-2-classes.png     what it shows of mistakes with two classes; the same with 4, 50 and 1000
"""

import base64
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
for folder in ("orchestration", "tuning", "reporting"):
    sys.path.insert(0, str(ROOT / "tests" / folder))


def main() -> None:
    wanted = sys.argv[1:]
    known: dict[str, Callable[[], list[Path]]] = {
        one.__name__: one for one in (terminal, dashboard, plots, workflow, report)
    }
    if unknown := set(wanted) - set(known):
        sys.exit(f"no such picture: {', '.join(unknown)}; known: {', '.join(known)}")
    for name in wanted or known:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            print(*known[name](), sep="\n")
            os.chdir(ROOT)


def terminal() -> list[Path]:
    """Draw the view of the default experiment with pretended jobs."""
    import pretend
    from rich.console import Console

    from iakd.config import read_settings
    from iakd.orchestration import run_view

    run = pretend.Pretend(read_settings(ROOT / "experiments/digits.yaml"))
    run_view.on_terminal = lambda: True
    console = Console(record=True, width=80, height=24, force_terminal=True, highlight=False, file=io.StringIO())
    run.start()
    view = run.handler._run
    assert isinstance(view, run_view.TerminalView)
    view.live.stop()
    view.since -= 170
    for job in run.needed:
        path = str(Path(job.output[0]).parent.relative_to("results"))
        if job.name in ("prepare", "teach") or (job.name == "distill" and "/kd" in path) or "/kd/" in path:
            seconds = {"prepare": 2, "teach": 25, "distill": 6}.get(job.name, 1)
            run.begin(job)
            view._began[job.number] -= seconds
            run.finish(job)
    study, student = run.job("tune", "two-path-tuned"), run.job("distill", "iakd-linear/seed2")
    for job in (study, student):
        run.begin(job)
    run.live("digits/tune/resnet20w8-resnet8w8/two-path-tuned", [{"trial": n, "best_value": 95.9} for n in range(5)])
    run.live("digits/students/resnet20w8-resnet8w8/iakd-linear/seed2", pretend.epochs(140, 140, 92.3))
    for path in Path(".state").rglob("*"):
        if path.is_file():
            pretend.ago(path, 40)
    view._read_again = 0.0
    console.print(f"$ make run\ndigits: {len(run.needed)} jobs to run", view._draw())
    picture = console.export_svg(title="make run")  # without the fonts that it would load from elsewhere
    (DOCS / "terminal.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))
    return [DOCS / "terminal.svg"]


def dashboard() -> list[Path]:
    """Run a toy study and take a picture of it in optuna-dashboard."""
    import toy_study

    toy_study.prepare()
    toy_study.run(toy_study.settings(trials=40, workers=2))
    port = free_port()
    journal = "results/toy/tune/big-small/iakd-tuned/study.journal"
    address = f"http://127.0.0.1:{port}/dashboard/studies/0"
    with (
        served(["optuna-dashboard", journal, "--port", str(port), "--quiet"], address),
        Browser(1300, 1230) as browser,
    ):
        browser.open(address)
        browser.wait("document.querySelectorAll('.js-plotly-plot .main-svg').length > 6")
        browser.photograph(DOCS / "optuna-dashboard.png")
    return [DOCS / "optuna-dashboard.png"]


def plots() -> list[Path]:
    """Draw two revisions of made-up results with DVC."""
    import fake_experiment

    from iakd.reporting import tables
    from iakd.reporting.results import read_comparison

    home = Path.cwd() / "home"
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    os.environ.update(who, HOME=str(home), DVC_SITE_CACHE_DIR=str(home / "dvc"), DVC_NO_ANALYTICS="1")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, check=True)
    shutil.copytree(ROOT / ".dvc/plots", ".dvc/plots")
    shutil.copy(ROOT / "params.yaml", ".")
    text = (ROOT / "dvc.yaml").read_text()
    Path("dvc.yaml").write_text(text[text.index("\nplots:") :])
    methods = {"scratch": {}, "kd": {}, "iakd-linear": {"method": "iakd"}}
    for gain in (0.0, 0.8):
        experiment = fake_experiment.plan(methods, epochs=5)
        scores = {label: [90 + 2 * n + gain + s for s in (0, 0.3, 0.7)] for n, label in enumerate(methods)}
        fake_experiment.write(experiment, scores)
        comparison = read_comparison(experiment)
        for name, rows in (("accuracy", tables.accuracy(comparison)), ("curves", curves(tables.curves(comparison)))):
            from iakd.experiment.run_dir import history_text

            path = experiment.evaluation / f"{name}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(history_text(rows))
        if not gain:
            subprocess.run(["git", "add", "--all"], check=True)
            subprocess.run(["git", "commit", "-qm", "one"], check=True)
    subprocess.run([sys.executable, str(ROOT / "tools/plots.py"), "diff", "HEAD", "-o", "drawn"], check=True, **QUIET)
    with Browser(720, 740) as browser:
        browser.open((Path.cwd() / "drawn/index.html").as_uri())
        browser.wait("document.querySelectorAll('canvas, svg.marks').length > 2")
        browser.photograph(DOCS / "dvc-plots.png")
    return [DOCS / "dvc-plots.png"]


def curves(rows: list[dict]) -> list[dict]:
    """Return made-up learning curves that end with the given accuracies."""
    return [
        {**row, "epoch": epoch, "val_top1": row["val_top1"] - 30 / epoch, "loss": 2 / epoch}
        for row in rows
        for epoch in range(1, 11)
    ]


SHORT = """
dataset: {name: digits, source: digits, val: 300, test: 847}
teachers: [{arch: resnet20, width: 8}]
students: [{arch: resnet8, width: 8}]
methods:
  scratch: {}
  kd: {}
  iakd-linear: {method: iakd, iakd: {schedule: {kind: linear, t_end: 0.7, student_only: 0.3}}}
  two-path: {method: iakd+kd, iakd: {form: two_path, paths: student_to_teacher}}
  kd-tuned: {method: kd, tune: {kd.temperature: [1, 8]}}
teach: {recipe: {epochs: 20, validate_every: 4}}
tune: {trials: 4, seeds: 1, recipe: {epochs: 20, validate_every: 4}}
distill: {seeds: [0, 1, 2], transfer: 100, recipe: {epochs: 40, batch_size: 50, lr: 0.05, validate_every: 4}}
"""


def workflow() -> list[Path]:
    """Run a short experiment, and take pictures of Snakemake's report on it and of its runs in MLflow."""
    subprocess.run(["iakd", "init", "."], check=True, **QUIET)
    Path("params.yaml").write_text(SHORT)
    subprocess.run(["snakemake", "--cores", "all", "--logger", "iakd"], check=True)
    subprocess.run(["snakemake", "--report", "snakemake.html"], check=True, **QUIET)
    with Browser(1300, 900) as browser:
        browser.open(Path("snakemake.html").resolve().as_uri())
        browser.wait("document.body.innerText.includes('Results')")
        browser.click("Results")
        browser.photograph(DOCS / "snakemake-report.png")
    port = free_port()
    with served(["iakd", "track", "ui", "--port", str(port)], f"http://127.0.0.1:{port}/health", "page.txt"):
        told = wait_for(lambda: re.search(r"MLflow: (\S+)", Path("page.txt").read_text()))
        table = told[1]
        with Browser(1600, 900) as browser:
            browser.open(table)
            browser.wait("document.querySelectorAll('[role=row]').length > 10")
            browser.photograph(DOCS / "mlflow-runs.png")
            browser.open(table + "&compareRunsMode=CHART")
            browser.wait("document.querySelectorAll('.js-plotly-plot .main-svg').length > 1")
            browser.photograph(DOCS / "mlflow-chart.png")
    return [DOCS / name for name in ("snakemake-report.png", "mlflow-runs.png", "mlflow-chart.png")]


def report() -> list[Path]:
    """Take pictures of a report of made-up results: wide, on a phone, in dark mode, and with few and many classes."""
    import fake_experiment

    from iakd.stages import report

    experiment = fake_experiment.example()
    fake_experiment.measured(experiment)
    page = report.run(experiment).resolve().as_uri()
    with Browser(1200, 1500) as browser:
        browser.open(page)
        browser.photograph(DOCS / "report.png")
        browser.order("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        browser.photograph(DOCS / "report-dark.png")
    with Browser(390, 1500) as browser:
        browser.open(page)
        browser.photograph(DOCS / "report-phone.png")
    for n in (2, 4, 50, 1000):
        os.chdir(tempfile.mkdtemp(dir="."))
        experiment = fake_experiment.plan({"kd": {}, "iakd+kd": {}}, seeds=(0,), epochs=5)
        names = [f"a long name, such as traffic sign {i}" if i % 2 else f"n{i:08d}_Xoloitzcuintli" for i in range(n)]
        fake_experiment.write(experiment, {"kd": [93.0], "iakd+kd": [95.0]}, classes=names)
        report.run(experiment)
        with Browser(870, 500) as browser:
            browser.open((experiment.report / "figures/confusion.svg").resolve().as_uri())
            browser.photograph(DOCS / f"report-{n}-classes.png")
    return [DOCS / name for name in ("report.png", "report-dark.png", "report-phone.png", "report-2-classes.png")]


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(found: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Return what `found` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if value := found():
                return value
        time.sleep(0.3)
    raise SystemExit("what the picture shows did not come in time")


@contextlib.contextmanager
def served(command: list[str], address: str, output: str = os.devnull) -> Iterator[None]:
    """Have a server run until it answers at `address`, and until the block ends."""
    with Path(output).open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: urllib.request.urlopen(address))
        yield
    finally:
        server.terminate()
        server.wait()


class Browser:
    """A chromium without a window, driven by its DevTools protocol in real time through two pipes.

    Its virtual time would be over before pages that ask a server have their answers.
    """

    def __init__(self, width: int, height: int) -> None:
        self.size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.numbers = itertools.count(1)
        self.session = ""

    def __enter__(self) -> "Browser":
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        hears, self.orders = os.pipe()
        self.answers, tells = os.pipe()
        options = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-component-update "
        options += f"--disable-background-networking --disable-sync --user-data-dir={self.profile.name}"
        command = f"exec chromium --remote-debugging-pipe {options} about:blank 3<&{hears} 4>&{tells}"
        self.process = subprocess.Popen(["bash", "-c", command], pass_fds=(hears, tells), **QUIET)
        os.close(hears)
        os.close(tells)
        self.rest = b""
        target = self.order("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.order("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.order("Emulation.setDeviceMetricsOverride", **self.size)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.orders)
        os.close(self.answers)
        self.profile.cleanup()

    def order(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have the browser do something, and return its answer."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.orders, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                if not (more := os.read(self.answers, 1 << 20)):
                    raise SystemExit("chromium has ended: is it installed?")
                self.rest += more
            text, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == number:
                if "error" in answer:
                    raise SystemExit(f"chromium: {answer['error']['message']}")
                return dict(answer["result"])

    def evaluate(self, code: str) -> Any:
        """Return what JavaScript code has as its value on the page."""
        return self.order("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def open(self, address: str) -> None:
        """Load a page."""
        self.order("Page.navigate", url=address)
        self.wait("document.readyState == 'complete'")

    def wait(self, code: str) -> None:
        """Wait until JavaScript code is true on the page."""
        wait_for(lambda: self.evaluate(code))

    def click(self, text: str) -> None:
        """Click on the innermost element with this text."""
        of_text = f"[...document.querySelectorAll('a,button,li,span,div')].filter(e => e.innerText?.trim() == {text!r})"
        self.evaluate(f"{of_text}.at(-1).click()")

    def photograph(self, path: Path) -> None:
        """Take a picture of the page once it has come to rest."""
        time.sleep(3)
        path.write_bytes(base64.b64decode(self.order("Page.captureScreenshot", format="png")["data"]))


if __name__ == "__main__":
    main()
