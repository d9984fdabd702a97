"""Runs the whole loop on the embedded corpus: mine, train, evaluate. `make demo` calls it.

A step is skipped when its command, its code, the steps before it and its output files are unchanged. A step that was
killed resumes from the files that it left, as every command of the project does; a step whose inputs changed starts
over. Two steps run beside each other where neither reads what the other writes: some, such as the training of the
tagger and the measure of the linker, use one core.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.schema import UserError
from pipeline.storage.file_lock import folder_lock

_STOPPED = 130  # exit status after Ctrl-C
_AT_ONCE = 2  # ours: more would only share the cores of a small machine
ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the loop; `{out}` is the demo's folder."""

    name: str
    command: str
    output: str  # folder of its results, removed when its inputs have changed
    also: tuple[str, ...] = ()  # further files that it writes, which must exist
    code: tuple[str, ...]  # globs below the repository
    after: tuple[str, ...] = ()  # the steps whose outputs it reads
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)  # what is not set otherwise
    does: str = ""


LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # for training, as of `make train`: see the Makefile

# Globs of what a step's program imports.
BASE_CODE = ("pipeline/*.py", "pipeline/storage/*.py", "pipeline/images/*.py", "pipeline/sources/*.py")
PIPELINE_CODE = (
    *BASE_CODE,
    "pipeline/engine/*.py",
    "pipeline/jobs/*.py",
    "pipeline/stages/*.py",
    "pipeline/kb/*.py",
    "pipeline/linking/*.py",
    "pipeline/linking/*.json",
    "pipeline/tagger/__init__.py",
    "pipeline/tagger/hashed_words.py",
    "pipeline/tagger/word_use.py",
    "pipeline/tagger/load.py",
)
WIKI_CODE = (
    "pipeline/wiki/*.py",
    "pipeline/wiki/excerpt_tables/*.tsv",
    "pipeline/kb/__init__.py",
    "pipeline/kb/normalise.py",
)
# What trainer and evaluation may import of the pipeline.
LOWEST_CODE = (
    "pipeline/__init__.py",
    "pipeline/commands.py",
    "pipeline/schema.py",
    "pipeline/byte_cache.py",
    "pipeline/images/*.py",
    "pipeline/storage/__init__.py",
    "pipeline/storage/disk.py",
    "pipeline/storage/fingerprints.py",
)
ENCODER_CODE = ("trainer/__init__.py", "trainer/encoder/*.py", *LOWEST_CODE)
TRAINER_CODE = (
    "trainer/**/*.py",
    "pipeline/shard_format.py",
    "pipeline/storage/beam_files.py",
    "pipeline/storage/file_lock.py",
    "pipeline/storage/lock.py",
    *LOWEST_CODE,
)

STEPS = (
    Step(
        name="packages",
        does="pictures and names from npm packages",
        command="npm ci --no-progress --loglevel=error --prefix {out}/packages",
        output="packages",
        code=("pipeline/demo/package.json", "pipeline/demo/package-lock.json", "pipeline/demo/.npmrc"),
    ),
    Step(
        name="corpus",
        does="pictures rendered, captions composed",
        command="python -m pipeline.demo.corpus --packages {out}/packages --output {out}/corpus",
        output="corpus",
        code=(*BASE_CODE, "pipeline/demo/*.py", "pipeline/kb/**/*.py"),
        after=("packages",),
    ),
    Step(
        name="anchors",
        does="links of Wikipedia articles counted",
        command="python -m pipeline.count_anchors --output {out}/anchors/anchors.tsv",
        output="anchors",
        code=("pipeline/*.py", "pipeline/storage/*.py", "pipeline/kb/build/*.py", *WIKI_CODE),
    ),
    Step(
        name="kb",
        does="entities, aliases and the use of names to the knowledge base",
        command="python -m pipeline.build_kb --source {out}/corpus/kb_source.jsonl "
        "--anchors {out}/anchors/anchors.tsv --texts {out}/corpus/pairs-*.tar --output {out}/kb",
        output="kb",
        code=(*BASE_CODE, "pipeline/kb/**/*.py"),
        after=("corpus", "anchors"),
    ),
    Step(
        name="tagger",
        does="a small flair tagger trained",
        command="python -m pipeline.tagger.train --output {out}/tagger",
        output="tagger",
        code=(
            "pipeline/*.py",
            "pipeline/storage/*.py",
            "pipeline/engine/__init__.py",
            "pipeline/engine/devices.py",
            "pipeline/kb/case.py",
            "pipeline/tagger/*.py",
            *WIKI_CODE,
        ),
    ),
    Step(
        name="sentence-encoder",
        does="all-MiniLM-L6-v2, which tells how near texts and descriptions are, from its package",
        command="python -m pipeline.demo.sentence_encoder --output {out}/sentence-encoder",
        output="sentence-encoder",
        code=(
            "pipeline/__init__.py",
            "pipeline/commands.py",
            "pipeline/schema.py",
            "pipeline/demo/__init__.py",
            "pipeline/demo/sentence_encoder.py",
            "pipeline/storage/__init__.py",
            "pipeline/storage/fingerprints.py",
        ),
    ),
    Step(
        name="linking",
        does="the linker measured on real text",
        command="python infra/eval_linker.py --gold evaluation/linking/labelled/alt_texts.jsonl "
        "evaluation/linking/labelled/captions.jsonl --half second --kb {out}/kb --ner-model {out}/tagger/best-model.pt "
        "--sentence-encoder {out}/sentence-encoder --demo {out} --output {out}/linking/linking.json",
        output="linking",
        code=(
            *PIPELINE_CODE,
            *WIKI_CODE,
            "pipeline/kb/build/*.py",
            "evaluation/__init__.py",
            "evaluation/demo/__init__.py",
            "evaluation/demo/labels.py",
            "evaluation/linking/*.py",
            "evaluation/linking/labelled/*.jsonl",
            "evaluation/sets/__init__.py",
            "evaluation/sets/parquet.py",
            "evaluation/sets/text.py",
            "infra/composed_sets.py",
            "infra/eval_linker.py",
            "infra/wikipedia_sets.py",
        ),
        after=("corpus", "kb", "tagger", "sentence-encoder"),
    ),
    Step(
        name="pairs",
        does="fourteen of twenty shards of raw pairs packed for training",
        # On the other six, which the encoder has not seen, what pictures tell the linker is fitted and measured.
        command="python -m pipeline.pack_pairs --input {out}/corpus/pairs-000?[0-6].tar --output {out}/pairs",
        output="pairs",
        code=(*PIPELINE_CODE, *ENCODER_CODE),
        after=("corpus",),
    ),
    Step(
        name="bootstrap",
        does="the filter's dual encoder trained on raw pairs",
        command="python -m trainer.train --config contrastive_bootstrap --data {out}/pairs "
        "--workdir {out}/models/bootstrap --mesh 1x1",
        output="models/bootstrap",
        code=TRAINER_CODE,
        after=("pairs",),
        environment=LARGE_PAGES,
    ),
    Step(
        name="i2e",
        does="pairs mined into entity-labelled images",
        command="python -m pipeline.build_i2e --runner direct --input {out}/corpus/pairs-*.tar --kb {out}/kb "
        "--ner-model {out}/tagger/best-model.pt --sentence-encoder {out}/sentence-encoder "
        "--encoder {out}/models/bootstrap/encoder --output {out}/i2e",
        output="i2e",
        code=(*PIPELINE_CODE, *ENCODER_CODE),
        after=("corpus", "kb", "tagger", "sentence-encoder", "bootstrap"),
    ),
    *(
        Step(
            name=recipe,
            does=f"the {recipe} recipe trained",
            command=f"python -m trainer.train --config {recipe}_demo --data {{out}}/i2e "
            f"--workdir {{out}}/models/{recipe} --mesh 1x1",
            output=f"models/{recipe}",
            code=TRAINER_CODE,
            after=("i2e",),
            environment=LARGE_PAGES,
        )
        # The longest first, so that none is left alone for long.
        for recipe in ("multitask", "supervised", "contrastive")
    ),
    Step(
        name="card",
        does="the set described on one page",
        command="python -m pipeline.data_card --data {out}/i2e --output {out}/i2e-card --kb {out}/kb",
        output="i2e-card",
        code=(*PIPELINE_CODE, "pipeline/report/*.py", *ENCODER_CODE),
        after=("i2e",),
    ),
    Step(
        name="evaluate",
        does="labels and encoders measured, the report written",
        command="python -m evaluation.demo.run --demo {out}",
        output="evaluation/cache",
        also=("metrics.json", "report.html", "table.txt"),  # --check-goals writes them again
        code=("evaluation/**/*.py", "pipeline/report/__init__.py", "pipeline/report/html_page.py", *ENCODER_CODE),
        after=("linking", "i2e", "supervised", "contrastive", "multitask"),
    ),
)


def main() -> int:
    """Runs what is not up to date; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/demo", help="folder of the demo's results")
    parser.add_argument(
        "--until", choices=[step.name for step in STEPS], help="run no other step than this and those that it needs"
    )
    args = parser.parse_args()
    out = Path(args.output).resolve()
    if out.is_relative_to(ROOT):
        out = out.relative_to(ROOT)
    os.chdir(ROOT)
    if shutil.which("npm") is None:
        print("error: npm is missing; install Node.js (nodejs.org, or your system's package `npm`)", file=sys.stderr)
        return 2
    try:
        out.mkdir(parents=True, exist_ok=True)
        with folder_lock(str(out), command="make demo", option="--output"):
            return _run_steps(out, args.until)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"error: --output {out} cannot be written ({error.strerror}); free some space, or choose another",
            file=sys.stderr,
        )
        return 2


def _run_steps(out: Path, until: str | None) -> int:
    records = out / "steps"
    records.mkdir(parents=True, exist_ok=True)
    setup_record = Path(".venv/setup.json")
    if setup_record.exists():
        shutil.copy(setup_record, records / "setup.json")

    fingerprints: dict[str, str] = {}
    for step in STEPS:
        fingerprints[step.name] = _fingerprint(step, fingerprints)
    wanted = _wanted(until)
    outdated = []
    for step in wanted:
        if _is_up_to_date(step, fingerprints[step.name], out, records):
            print(f"{_title(step)} (up to date)", flush=True)
        else:
            outdated.append(step)
    status = _run_outdated(outdated, fingerprints, out, records)
    if status == 0 and STEPS[-1] in wanted and STEPS[-1] not in outdated:  # which has just printed it
        print((out / "table.txt").read_text(), end="")
    return status


def _wanted(until: str | None) -> list[Step]:
    """Returns, in their order, the step `until` and those that it needs; None: all."""
    needed = {until}
    for step in reversed(STEPS):
        if step.name in needed:
            needed.update(step.after)
    return [step for step in STEPS if until is None or step.name in needed]


def _is_up_to_date(step: Step, fingerprint: str, out: Path, records: Path) -> bool:
    record = _read(records / f"{step.name}.json")
    return (
        record.get("fingerprint") == fingerprint
        and all((out / name).exists() for name in step.also)
        and record.get("files") == _files(out / step.output)
    )


def _title(step: Step) -> str:
    return f"[{STEPS.index(step) + 1}/{len(STEPS)}] {step.name}: {step.does}"


def _run_outdated(steps: list[Step], fingerprints: dict[str, str], out: Path, records: Path) -> int:
    """Runs steps, each once those that it reads of have ended; returns the exit status of the first that failed, or 0.

    Steps start in their order. After a failure none starts; those that run go on to their end.
    """
    waiting, failed = list(steps), 0
    running: dict[concurrent.futures.Future[int], Step] = {}
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            while running or (waiting and not failed):
                unfinished = {step.name for step in (*waiting, *running.values())}
                ready = [step for step in waiting if not failed and unfinished.isdisjoint(step.after)]
                for step in ready[: _AT_ONCE - len(running)]:
                    waiting.remove(step)
                    print(_title(step), flush=True)
                    running[pool.submit(_run, step, fingerprints[step.name], out, records, processes)] = step
                for ended in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                    step = running.pop(ended)
                    if status := ended.result():
                        failed = failed or status
                        advice = "fix the cause, then run `make demo`"
                        print(f"error: step {step.name} ended with exit status {status}; {advice}", file=sys.stderr)
        except KeyboardInterrupt:
            names = ", ".join(step.name for step in running.values())
            for process in tuple(processes.values()):
                process.terminate()
            print(f"\nstopped in step {names}; `make demo` resumes here", file=sys.stderr)
            return _STOPPED
    return failed


def _run(step: Step, fingerprint: str, out: Path, records: Path, processes: dict[str, subprocess.Popen[bytes]]) -> int:
    """Runs a step, which is in `processes` for as long as it lasts; returns its exit status."""
    record_path, started_path = records / f"{step.name}.json", records / f"{step.name}.started"
    output = out / step.output
    started = _read(started_path)
    if started.get("fingerprint") != fingerprint:
        started = {"fingerprint": fingerprint, "seconds": 0.0}
        shutil.rmtree(output, ignore_errors=True)
    started.setdefault("spans", [])
    record_path.unlink(missing_ok=True)
    _write(started_path, started)
    if step.name == "packages":
        output.mkdir(parents=True, exist_ok=True)
        for name in step.code:
            shutil.copy(ROOT / name, output)
    words = [sys.executable if word == "python" else word.format(out=out) for word in shlex.split(step.command)]
    start = time.time()
    try:
        with subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**step.environment, **os.environ, "PYTHONUNBUFFERED": "1"},
        ) as process:
            processes[step.name] = process
            assert process.stdout is not None
            with io.TextIOWrapper(process.stdout, encoding="utf-8", errors="replace", newline="") as lines:
                for line in lines:
                    if not line.endswith("\r"):  # a state of a progress bar, which the next one replaces
                        named = f"{step.name}: " if len(processes) > 1 else ""
                        print(f"{named}{line.rstrip()}\n", end="", flush=True)  # one string: another step prints too
    finally:
        processes.pop(step.name, None)
        # The time of a stopped run counts too.
        started["spans"].append((round(start, 1), round(time.time(), 1)))
        started["seconds"] = round(sum(end - start for start, end in started["spans"]), 1)
        _write(started_path, started)
    if process.returncode == 0:
        _write(record_path, {"step": step.name, **started, "files": _files(output)})
        started_path.unlink()
        print(f"    {step.name} took {started['seconds']:.0f} s", flush=True)
    return process.returncode


def _files(output: Path) -> str:
    """Returns a hash of names, sizes and times of what a step made, so that changes by something else are noticed."""
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(output):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if name == "lock.mdb":  # readers write it
                continue
            stat = path.lstat()
            digest.update(f"{path.relative_to(output)}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """Returns a record; an empty one if the file is missing, or was cut short by a full disk."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write(path: Path, record: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record), encoding="utf-8")
    os.replace(temporary, path)


def _fingerprint(step: Step, earlier: dict[str, str]) -> str:
    digest = hashlib.sha256(step.command.encode() + b"\0" + (ROOT / "requirements.txt").read_bytes())
    for name in step.after:
        digest.update(earlier[name].encode())
    for pattern in step.code:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
