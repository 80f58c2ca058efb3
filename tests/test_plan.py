"""Plans: what devices hold, and when, checked on eight CPU devices that are there."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_runs
import tiny

from vtscale_jax import settings
from vtscale_jax.collate import Encoded, blank_batch, collate
from vtscale_jax.devices import GIB, Chip
from vtscale_jax.parallel import __main__ as command
from vtscale_jax.parallel.mesh import make_mesh, spread
from vtscale_jax.parallel.plans import command as planning
from vtscale_jax.parallel.plans import search, table
from vtscale_jax.parallel.plans.lengths import Lengths, assumed_shapes
from vtscale_jax.parallel.plans.plan import (
    PlanError,
    Seconds,
    Work,
    bytes_per_device,
    predict,
)
from vtscale_jax.parallel.plans.topologies import (
    Topology,
    TopologyError,
    check_compiler,
    topology,
)
from vtscale_jax.program import Program
from vtscale_jax.tokens import QueryLayout
from vtscale_jax.types import Kind

# ml_collections loads a config file in a way that Python 3.12 no longer has.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

# Short texts, where their lengths are assumed.
SHORT = ("--lengths", "assumed", "--turns", "2", "--question", "4", "--answer", "4")
HERE = Chip("this CPU", memory=GIB, flops=1e12, bandwidth=1e10, link=1e9)


@dataclasses.dataclass(frozen=True)
class Here(Topology):
    """The eight virtual devices, as if they were absent."""

    def devices(self) -> list:
        return jax.devices()[: self.num_devices]


@pytest.fixture
def in_repo(repo_dir, monkeypatch):
    """Configs are named as in the README."""
    monkeypatch.chdir(repo_dir)


def words(topology: str = "here:8", *more: str, arg: str = "", **fields) -> list[str]:
    always = {"model__dtype": "float32", "model__llm_param_dtype": "float32"}
    fields = always | {"data__max_local_views": 2} | fields
    config = f"configs/m8.py{arg and ':' + arg}"
    changed = small_runs.flags(**fields)
    return ["plan", "--config", config, "--topology", topology, *changed, *more]


def job(*more: str, machine: Topology | None = None, arg: str = "", **fields):
    options = command.parse(words("here:8", *more, arg=arg, **fields))
    config = planning.read_config(options.config_words)
    machine = machine or Here("here:8", HERE, 8)
    return planning.Job(config, machine, options)


@pytest.fixture
def here(monkeypatch):
    """The machine "here:8" for the whole command."""

    def known(name: str) -> Topology:
        return Here(name, HERE, 8) if name == "here:8" else topology(name)

    monkeypatch.setattr(planning, "topology", known)


def test_plan_is_what_a_run_would_hold(in_repo):
    """Bytes on each device are those of real arrays laid out by the run's program."""
    one = job(*SHORT, mesh__data=2, mesh__fsdp=4)
    plan = one.as_it_is()
    config = one._config
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    model = settings.model_config(config, "float32")
    program = Program.of(
        one.stage,
        model,
        settings.optim_config(config, 64),
        mesh,
        frozen_dtype="float32",
        frozen_layout="replicated",
    )
    whole = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), program.state)
    state = program.start(whole.params)
    first = jax.devices()[0]

    def held(tree) -> int:
        shards = [s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards]
        return sum(shard.data.nbytes for shard in shards if shard.device == first)

    assert plan.memory is not None
    assert plan.memory.trainable == held(state.params)
    assert plan.memory.optimizer == held(state.opt_state)
    frozen = sum(leaf.size * 4 for leaf in jax.tree.leaves(program.frozen))
    assert plan.memory.frozen == frozen
    lengths = Lengths(turns=2, question=4, answer=4)
    spec = assumed_shapes(config, lengths, model.vision.tokens_per_crop)
    batch = blank_batch(spec, "adapt", model.vision.image_size)
    step_counter = 4
    assert plan.memory.batch == held(spread(batch, mesh)) + step_counter
    # And the peak is what the compiled program needs when it runs.
    compiled = program.compile(batch)
    stats = compiled.memory_analysis()
    needed = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    needed += stats.output_size_in_bytes - stats.alias_size_in_bytes
    assert plan.needed == sum(plan.memory) == pytest.approx(needed, rel=0.01)
    assert plan.memory.gradients == plan.memory.trainable
    # Negative control: another layout holds something else.
    other = job(*SHORT, mesh__data=8, mesh__fsdp=1).as_it_is()
    assert other.memory is not None
    assert other.memory.trainable > 3 * plan.memory.trainable
    assert other.sent is not None and plan.sent is not None
    # Parameters come together in one, and only vision tokens in the other.
    assert plan.sent["all-gather"].sent > 3 * other.sent["all-gather"].sent


def test_recipe(in_repo):
    more = ("--records", "1000", "--efficiency", "0.5")
    one = job(*SHORT, *more, data__batch_size=16, optim__accumulation=5)
    one._config.optim.update(steps=None, epochs=2.0)
    plan = one.as_it_is()
    updates = 2 * 1000 // (16 * 5)
    assert plan.steps == updates * 5
    assert plan.seconds.compute == pytest.approx(plan.work.flops / 8 / 0.5e12)
    assert plan.days == pytest.approx(plan.steps * plan.seconds.step / 86400)
    assert plan.rows == 2
    longest = max(plan.seconds.compute, plan.seconds.memory)
    assert plan.seconds.step == longest + plan.seconds.network
    # A tenth of the records is a tenth of the steps.
    one._config.data.subset = 0.1
    assert one._records(one._config) == 100


def test_shapes_of_data_at_hand(in_repo):
    one, other = job(), job("--lengths", "assumed")
    assert one._data is not None and other._data is None
    spec = one._spec(one._config, 8)
    assert spec.crops[-1] % 8 == 0
    assert spec.llm_length[-1] < 200  # digit pages ask short questions
    # 64 of system text, M = 4 and seven times N = 4, eight turns of 32 + 96 + 8 + 1.
    assert other._spec(other._config, 8).llm_length == (1200,)
    assert "of the config's data" in job("--lengths", "data").as_it_is().shapes


def test_assumed_shapes_hold_what_they_say(in_repo):
    """A batch of conversations as long as assumed fits; one token more than the
    rounding leaves does not."""
    config = planning.read_config(command.parse(words()).config_words)
    lengths = Lengths(turns=3, question=7, answer=9, system=11, template=5)
    spec = assumed_shapes(config, lengths, tokens_per_crop=5)
    layout = QueryLayout(config.num_queries, 4)

    def encoded(answer: int) -> Encoded:
        rng = np.random.default_rng(0)
        fusion, llm = [], [(tiny.words(rng, 11), Kind.SYS)]
        for turn in range(3):
            question = tiny.words(rng, 7)
            slots = layout.placeholder_ids(turn, 2)
            fusion += [(question, Kind.QUE), (slots, Kind.QED), ([2], Kind.EOS)]
            llm += [([2] * layout.count(turn), Kind.QED), (question, Kind.QUE)]
            llm += [(tiny.words(rng, 5), Kind.INST)]
            llm += [(tiny.words(rng, answer), Kind.ANS), ([2], Kind.EOS)]
        crops = np.zeros((1 + config.data.max_local_views, 16, 16, 3), np.float32)
        made = (tiny.sequence(fusion), tiny.sequence(llm))
        return Encoded("long", crops, made[0], llm=made[1])

    rows = config.data.batch_size
    batch = collate([encoded(9)] * rows, spec)
    assert batch.llm is not None
    assert batch.llm.loss_mask.all(axis=1).sum() in (0, rows)
    with pytest.raises(ValueError, match="llm_length|loss_positions"):
        collate([encoded(9 + 16)] * rows, spec)


def test_per_device_keeps_updates(in_repo):
    plan = job(
        *SHORT,
        *("--per_device", "2"),
        data__batch_size=8,
        optim__accumulation=6,
    ).as_it_is()
    assert (plan.batch_size, plan.accumulation, plan.rows) == (16, 3, 2)


def test_batch_that_cannot_be_shared_out(in_repo):
    with pytest.raises(ValueError, match="data.batch_size is 12, expected a multiple"):
        job(*SHORT, data__batch_size=12).as_it_is()


def test_predict():
    machine = Topology("made up", Chip("c", GIB, 100.0, 10.0, 5.0), 8)
    work = Work(flops=1600, useful=0, weights=40, residuals=80, updates=320)
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    found = predict(work, machine, mesh, sent=20, efficiency=0.5)
    # 1600 / 8 at half of 100; 40 / 2 + 80 / 8 + 320 / 4 at 10; 20 at 5.
    assert found == Seconds(4.0, 11.0, 4.0)
    assert found.step == 15.0
    faster = machine.chip.__class__("c", GIB, 1000.0, 1000.0, 5.0)
    quick = dataclasses.replace(machine, chip=faster)
    assert predict(work, quick, mesh, 20, 0.5).step == pytest.approx(0.4 + 4.0)


def ways(**more) -> list[search.Choice]:
    options = {"num_heads": (4, 2), "aligns": False} | more
    return list(search.choices(8, 16, 4, **options))


def test_choices():
    found = ways()
    assert len(set(found)) == len(found)
    for one in found:
        assert one.data * one.fsdp * one.tensor == 8
        assert one.batch_size * one.accumulation == 64
        assert one.batch_size % (one.data * one.fsdp) == 0
    assert {one.tensor for one in found} == {1, 2}  # two key heads
    assert {one.remat for one in found} == set(search.LEAST_REMAT_FIRST)
    alone = [one for one in found if one.fsdp * one.tensor == 1]
    assert {one.frozen for one in alone} == {"replicated"}
    # The other rows of an align batch are its negatives: its size is not free.
    assert {one.batch_size for one in ways(aligns=True)} == {16}


def test_estimate_is_a_lower_bound(in_repo):
    """What compiled programs need and send is no less than arithmetic says."""
    one = job(*SHORT, data__batch_size=8, optim__accumulation=2)
    for remat, frozen, mesh in (
        ("full", "sharded", (1, 8, 1)),
        ("selective,vision", "sharded", (2, 4, 1)),
        ("none", "replicated", (4, 1, 2)),
    ):
        choice = search.Choice(*mesh, frozen, remat, 8, 2)
        config = one._chosen(choice)
        guess = search.estimate(choice, one._cost(config), one.machine, 0.4)
        plan = one._plan(config)
        assert guess.state < guess.least <= plan.needed
        assert plan.memory is not None
        held = plan.memory[:3] + plan.memory[4:5]
        # In so small a model, vectors and other copies are not little.
        assert 0.6 * sum(held) < guess.state <= sum(held)
        assert guess.seconds.compute == plan.seconds.compute
        assert guess.seconds.memory == plan.seconds.memory


def test_search_finds_the_fastest_that_fits(in_repo):
    arguments = (*SHORT, "--compile_at_most", "2")
    fields = {"data__batch_size": 8, "optim__accumulation": 2}
    roomy = job(*arguments, **fields).fastest()
    assert roomy.best is not None and roomy.best.fits
    assert roomy.best.remat != "full"  # there is room for what it saves
    assert roomy.best.batch_size * roomy.best.accumulation == 16
    compiled = [one.plan for one in roomy.tried if one.plan]
    speeds = [plan.seconds.step / plan.batch_size for plan in compiled if plan.fits]
    assert roomy.best.seconds.step / roomy.best.batch_size == min(speeds)
    # Its overrides are those of a config that plans the same.
    again = command.parse([*words(), *roomy.best.overrides])
    config = planning.read_config(again.config_words)
    assert dict(config.mesh) == roomy.best.mesh | {"frozen": roomy.best.frozen_layout}
    assert config.data.batch_size == roomy.best.batch_size
    assert config.model.remat == roomy.best.remat
    # With less memory, something that needs less.
    room = dataclasses.replace(HERE, memory=int(0.8 * roomy.best.needed))
    tight = job(*arguments, machine=Here("tight", room, 8), **fields).fastest()
    assert tight.best is not None and tight.best.needed <= room.memory
    assert tight.best.seconds.step / tight.best.batch_size >= min(speeds)
    # With next to none, nothing, and it says so.
    none = dataclasses.replace(HERE, memory=2**20)
    found = job(*arguments, machine=Here("none", none, 8), **fields).fastest()
    assert found.best is None and not found.tried
    assert found.too_large == found.considered > 10


def test_a_choice_that_the_compiler_refuses_is_listed(in_repo, monkeypatch):
    one = job(*SHORT, "--compile_at_most", "2")

    def refuse(config):
        raise PlanError("no tiles for this shape\nmore")

    monkeypatch.setattr(one, "_plan", refuse)
    found = one.fastest()
    assert found.best is None
    assert [t.why_not for t in found.tried] == ["no tiles for this shape"] * 2
    assert any("no tiles for this shape" in line for line in search.lines(found))


def test_command_prints_one_table(in_repo, here, capsys, tmp_path):
    file = tmp_path / "plan.json"
    status = command.main(words("here:8", "--json", str(file), *SHORT))
    out = capsys.readouterr().out
    assert status == 0
    (plan,) = json.loads(file.read_text())["plans"]
    for label in ("frozen weights", "gradients", "peak", "fits", "TFLOP", "days"):
        assert any(line.strip().startswith(label) for line in out.splitlines()), label
    assert plan["fits"] and plan["device"] == "this CPU"
    assert sum(plan["memory_bytes"].values()) == plan["peak_bytes"]
    assert f"{plan['peak_bytes'] / GIB:.2f}" in out
    columns = {len(line) for line in out.split("\n\n")[1].splitlines()[1:4]}
    assert len(columns) == 1  # to the right edge


def test_command_says_when_it_does_not_fit(in_repo, monkeypatch, capsys):
    small = dataclasses.replace(HERE, memory=2**20)
    monkeypatch.setattr(planning, "topology", lambda name: Here(name, small, 8))
    assert command.main(words("here:8", *SHORT)) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fits", "NO"] in lines


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology", "a100:8"], "topology 'a100:8' is unknown; expected"),
        (["--config.optim.stpes=3"], "stpes"),
        (["--config", "configs/m9.py"], "m9.py"),
        (["--config", "configs/m8.py:papr"], "papr"),
    ],
)
def test_mistakes_are_one_line(in_repo, here, capsys, arguments, message):
    assert command.main([*words(), *arguments]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("error: ") and message in error[-1]


@pytest.mark.parametrize(
    "arguments", [["--efficiency", "0"], ["--turns", "0"], ["--no_such_flag"]]
)
def test_flags_are_checked(arguments, capsys):
    with pytest.raises(SystemExit):
        command.parse([*words(), *arguments])
    assert arguments[0] in capsys.readouterr().err


def test_all_lists_what_is_not_planned(in_repo, capsys, monkeypatch):
    monkeypatch.setattr(planning, "ALL", ("here:8", "v5e-16", "h100:8"))
    monkeypatch.setattr(
        "vtscale_jax.parallel.plans.topologies._found", lambda module: False
    )
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(
        planning,
        "topology",
        lambda name: Here(name, HERE, 8) if name == "here:8" else topology(name),
    )
    assert command.main(words("all", *SHORT)) == 1
    out = capsys.readouterr().out
    assert "here:8" in out
    for extra, name in (("plan-tpu", "v5e-16"), ("plan-gpu", "h100:8")):
        (line,) = [one for one in out.splitlines() if one.startswith(f"{name}: not")]
        assert extra in line


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), jax.errors.JaxRuntimeError("INTERNAL: no text")]
)
def test_what_was_planned_is_kept(in_repo, tmp_path, capsys, monkeypatch, error):
    """Whatever becomes of the next machine."""
    monkeypatch.setattr(planning, "ALL", ("here:8", "other:8"))
    monkeypatch.setattr(planning, "topology", lambda name: Here(name, HERE, 8))
    made = planning.Job.as_it_is

    def break_second(job):
        if job.machine.name == "other:8":
            raise error
        return made(job)

    monkeypatch.setattr(planning.Job, "as_it_is", break_second)
    arguments = words("all", *SHORT, "--json", str(tmp_path / "plan.json"))
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            command.main(arguments)
    else:
        assert command.main(arguments) == 1
        assert "other:8: not planned: INTERNAL: no text" in capsys.readouterr().out
    (plan,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    assert plan["topology"] == "here:8"


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        command.parse(["plan", "--help"])
    out = capsys.readouterr().out
    assert "$ python -m vtscale_jax.parallel plan --topology a100-40gb:8" in out


def test_columns():
    assert table.aligned([["a", "bb"], ["ccc", "d"]]) == ["a    bb", "ccc   d"]


def test_bytes_per_device():
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    cut = jax.NamedSharding(mesh, jax.P("fsdp"))
    tree = [jax.ShapeDtypeStruct((16, 3), np.float16, sharding=cut)]
    assert bytes_per_device(tree) == 4 * 3 * 2


# What libtpu 0.0.52 says of a program that its chip cannot hold.
TOO_LARGE = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total "
    "memory required for HLO temporaries (17.42G) exceeds available HBM (15.75G). HLO "
    "module: jit_step.\nSee https://openxla.org/xla/errors/error_1000"
)


def test_a_compiler_that_says_too_large(in_repo, monkeypatch, capsys):
    def refuse(self, batch, **options):
        raise jax.errors.JaxRuntimeError(TOO_LARGE)

    monkeypatch.setattr(Program, "compile", refuse)
    small = dataclasses.replace(HERE, memory=int(15.75 * GIB))
    plan = job(*SHORT, machine=Here("here:8", small, 8)).as_it_is()
    assert not plan.fits and plan.memory is None and plan.sent is None
    assert plan.needed == int(17.42 * GIB)
    text = "\n".join(table.lines([plan]))
    assert "17.42" in text and "NO" in text
    assert table.as_json(plan)["days"] is None
    assert json.dumps(table.as_json(plan))


def test_more_machines_than_two_have_a_line_each(in_repo, monkeypatch):
    def refuse(self, batch, **options):
        raise jax.errors.JaxRuntimeError(TOO_LARGE)

    monkeypatch.setattr(Program, "compile", refuse)
    plan = job(*SHORT, machine=Here("here:8", HERE, 8)).as_it_is()
    names = ["a", "b", "longer"]
    plans = [plan._replace(machine=Here(name, HERE, 8)) for name in names]
    text = table.lines(plans)
    head = text.index(next(line for line in text if line.startswith("machine")))
    assert [line.split()[0] for line in text[head + 1 : head + 4]] == names
    assert len({len(line) for line in text[head : head + 4]}) == 1
    # What all have in common is said once.
    assert sum(line.startswith("a, b, longer: B ") for line in text) == 1
    both = table.lines(plans[:2])
    assert any(line.split()[:3] == ["frozen", "weights", "are"] for line in both)


def test_a_compiler_that_refuses(in_repo, monkeypatch):
    def refuse(self, batch, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: no tile sizes\nand more")

    monkeypatch.setattr(Program, "compile", refuse)
    with pytest.raises(PlanError, match="here:8 refused.*no tile sizes\nThis is no"):
        job(*SHORT).as_it_is()


@pytest.mark.parametrize("name", ["a100-40gb:8", "h100:1", "v5e-16"])
def test_real_compilers(in_repo, name, tmp_path):
    """The command as typed, in a process of its own, for a machine that is not here."""
    try:
        check_compiler(topology(name))
    except TopologyError:
        pytest.skip(f"the compiler for {name} is an extra (plan-gpu, plan-tpu)")
    machine = topology(name)
    file = tmp_path / "plan.json"
    more = ("--json", str(file), *SHORT)
    arguments = words(name, *more, data__batch_size=16, mesh__fsdp=-1, mesh__data=1)
    process = subprocess.run(
        [sys.executable, "-m", "vtscale_jax.parallel", *arguments],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    (plan,) = json.loads(file.read_text())["plans"]
    assert plan["num_devices"] == machine.num_devices
    assert plan["device_bytes"] == machine.chip.memory
    assert bool(plan["sent_bytes"]) == (machine.num_devices > 1)
    assert "fits" in process.stdout
