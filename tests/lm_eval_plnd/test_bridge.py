"""What an installation of this project does to other Python programs, and to lm-eval: seen from fresh interpreters."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch

import lm_eval_plnd
from lm_eval_plnd.bridge import TARGET
from lm_eval_plnd.task_folder import tasks_folder
from plnd.demo_data import demo_corpus, demo_model
from plnd.models.loading import load_model

REPOSITORY = Path(__file__).parents[2]
FIND_LINE = """
from importlib.metadata import files
print(next(file.locate() for file in files("plnd") if file.name == "lm_eval_plnd.pth"))
"""
REPORT = """
import json, sys
from lm_eval.api.registry import model_registry
waiting = [name for finder in sys.meta_path if "lm_eval_plnd" in str(finder) for name in finder.awaited]
print(json.dumps({"models": {name: str(model) for name, model in model_registry.items()}, "waiting": waiting}))
"""


def execute(*command, **environment) -> subprocess.CompletedProcess:
    """Run `command` away from the repository, with the bridge as installed unless `environment` says otherwise."""
    inherited = {name: value for name, value in os.environ.items() if name != "PLND_BRIDGE"}
    return subprocess.run(
        list(map(str, command)),
        env=inherited | {name: str(value) for name, value in environment.items()},
        cwd=sysconfig.get_path("stdlib"),  # Python puts the working folder on `sys.path`; this one is there anyway
        capture_output=True,
        text=True,
    )


def output(*command, **environment) -> str:
    """What a command that must succeed has printed."""
    done = execute(*command, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def report(code: str, python: str | Path = sys.executable, **environment) -> dict:
    """lm-eval's models, and the finders of ours still on `sys.meta_path`, after `code` in a fresh interpreter."""
    return json.loads(output(python, "-c", code + REPORT, **environment).splitlines()[-1])


def files(folder: Path) -> set[Path]:
    """All files below `folder`."""
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fake_lm_eval(tmp_path):
    """Returns a function that writes a tiny `lm_eval` and returns the folder to put first on PYTHONPATH."""

    def write(registry: str = "", models: str = "") -> Path:
        package = tmp_path / "lm_eval"
        for folder in (package, package / "api", package / "models"):
            folder.mkdir()
            (folder / "__init__.py").touch()
        plain = "class Registry(dict):\n    def register(self, name, target): self[name] = target\n"
        (package / "api" / "registry.py").write_text(f"{plain}model_registry = Registry()\n{registry}\n")
        fill = "from lm_eval.api.registry import model_registry\nmodel_registry.register('hf', target='a:B')\n"
        (package / "models" / "__init__.py").write_text(f"{models}\n{fill}")
        return tmp_path

    return write


@pytest.mark.parametrize(
    "code",
    [
        "import lm_eval.models",
        pytest.param("from lm_eval.models.huggingface import HFLM", marks=pytest.mark.slow),
        "from lm_eval.api.registry import get_model; get_model('dummy')",
        "import importlib.util; importlib.util.find_spec('lm_eval.models'); import lm_eval.models",
    ],
)
def test_plnd_is_registered_however_lm_eval_is_imported(code):
    """The name is there, as a placeholder that has loaded nothing, and the bridge waits for PEFT alone, if at all."""
    after = report(code)
    assert after["models"]["plnd"] == TARGET
    assert set(after["waiting"]) <= {"peft.mapping"}


def test_own_models_of_lm_eval_are_all_there_and_unchanged():
    """With the bridge the registry holds what it holds without, and one name more."""
    models = report("import lm_eval.models")["models"]
    stock = report("import lm_eval.models", PLND_BRIDGE=0)["models"]
    assert len(stock) > 30 and stock["hf"] == "lm_eval.models.huggingface:HFLM"
    assert models == stock | {"plnd": TARGET}


def test_switched_off_nothing_waits_and_nothing_is_registered():
    """`PLND_BRIDGE=0` leaves `sys.meta_path` and the registry as they are without this project."""
    assert report("", PLND_BRIDGE=0)["waiting"] == []
    assert report("")["waiting"] == ["lm_eval.models", "peft.mapping"]
    assert "plnd" not in report("import lm_eval.models", PLND_BRIDGE=0)["models"]


def test_lm_eval_models_looks_as_if_it_had_been_imported_without_a_bridge():
    """Spec and loader of the module are the real ones, so its source can be inspected as usual."""
    code = "import lm_eval.models as m; print(type(m.__loader__), m.__loader__ is m.__spec__.loader, m.__spec__.origin)"
    assert output(sys.executable, "-c", code) == output(sys.executable, "-c", code, PLND_BRIDGE=0)


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("", {"hf": "a:B", "plnd": TARGET}),
        ("def load_plugins(group, registry): ...", {"hf": "a:B"}),
        ("model_registry.register('plnd', target='some:Other')", {"hf": "a:B", "plnd": "some:Other"}),
    ],
    ids=["plain", "discovers plugins", "has the name"],
)
def test_bridge_stands_aside(registry, expected, fake_lm_eval):
    """Where lm-eval discovers plugins itself nothing is registered; a name that is there already stays what it is."""
    after = report("import lm_eval.models", PYTHONPATH=fake_lm_eval(registry))
    assert after == {"models": expected, "waiting": ["peft.mapping"]}


def test_a_registry_of_unknown_shape_is_left_alone(fake_lm_eval):
    """An lm-eval whose registry has no `model_registry` is imported without an error."""
    path = fake_lm_eval(registry="old = model_registry; del model_registry")
    (path / "lm_eval" / "models" / "__init__.py").write_text("")
    assert output(sys.executable, "-c", "import lm_eval.models; print('fine')", PYTHONPATH=path) == "fine\n"


def test_bridge_waits_on_after_a_failed_import(fake_lm_eval):
    """When `lm_eval.models` raises, the next attempt to import it registers the name."""
    path = fake_lm_eval(models="import sys\nif not hasattr(sys, 'second'):\n    sys.second = 1\n    raise KeyError")
    after = report("try: import lm_eval.models\nexcept KeyError: import lm_eval.models", PYTHONPATH=path)
    assert set(after["models"]) == {"hf", "plnd"}


def test_pefts_table_learns_one_name_and_imports_nothing_before_it_is_asked(tmp_path):
    """Of a `peft` with a table of methods: other names are missing as before, ours imports `peft_plnd`."""
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text("from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING\n")
    (tmp_path / "peft" / "mapping.py").write_text("PEFT_TYPE_TO_CONFIG_MAPPING = {'LORA': 1}\n")
    registers = "from peft import PEFT_TYPE_TO_CONFIG_MAPPING as table\ntable['NEURON_SELECT'] = 2\n"
    (tmp_path / "peft_plnd.py").write_text(registers)
    code = """
import sys, peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as table
assert table == {"LORA": 1} and "NEURON_SELECT" not in table and table.get("NEURON_SELECT") is None
try: table["NO_METHOD"]
except KeyError as error: print(error)
print("peft_plnd" in sys.modules, table["NEURON_SELECT"], table["LORA"], "peft_plnd" in sys.modules)
print([name for finder in sys.meta_path if "lm_eval_plnd" in str(finder) for name in finder.awaited])
"""
    expected = "'NO_METHOD'\nFalse 2 1 True\n['lm_eval.models']\n"
    assert output(sys.executable, "-c", code, PYTHONPATH=tmp_path) == expected
    off = execute(sys.executable, "-c", code, PYTHONPATH=tmp_path, PLND_BRIDGE=0)
    assert "KeyError: 'NEURON_SELECT'" in off.stderr


def test_start_up_loads_no_lm_eval_and_no_torch():
    """An interpreter that does nothing has the bridge, and none of the libraries it stands for."""
    loaded = set(output(sys.executable, "-c", "import sys; print(*sys.modules)").split())
    assert "lm_eval_plnd.bridge" in loaded
    assert not {"lm_eval", "torch", "transformers", "numpy", "plnd"} & loaded


def test_bridge_loads_only_itself():
    """Beside `sys` and `os`, which every start-up loads, importing the bridge loads two modules: package and bridge."""
    code = (
        "import os, sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1])\n"
        "from lm_eval_plnd.bridge import install; install(); print(*sorted(set(sys.modules) - before))"
    )
    root = Path(lm_eval_plnd.__file__).parents[1]
    assert output(sys.executable, "-S", "-c", code, root) == "lm_eval_plnd lm_eval_plnd.bridge\n"


@pytest.mark.parametrize("left_behind", [None, "", "raise OSError", "def broken(:"])
def test_half_removed_installation_is_silent(left_behind, tmp_path):
    """The line in site-packages prints nothing when the package is gone, emptied or broken; an unguarded line would."""
    site = "import site, sys; site.addsitedir(sys.argv[1])"
    shutil.copy(output(sys.executable, "-c", FIND_LINE).strip(), tmp_path)
    if left_behind is not None:
        (tmp_path / "lm_eval_plnd").mkdir()
        (tmp_path / "lm_eval_plnd" / "__init__.py").touch()
        (tmp_path / "lm_eval_plnd" / "bridge.py").write_text(left_behind)
    assert execute(sys.executable, "-S", "-c", site, tmp_path).stderr == ""
    (tmp_path / "unguarded.pth").write_text("import lm_eval_plnd.no_such_module\n")
    assert "Error processing line 1" in execute(sys.executable, "-S", "-c", site, tmp_path).stderr


WAYS = """
import os, sys
import torch, transformers
from peft import AutoPeftModelForCausalLM, PeftModel

base, adapter = sys.argv[1:]
load = transformers.AutoModelForCausalLM.from_pretrained


def load_adapter():
    model = load(base)
    model.load_adapter(adapter)
    return model


ways = {
    "PeftModel": lambda: PeftModel.from_pretrained(load(base), adapter),
    "AutoPeftModel": lambda: AutoPeftModelForCausalLM.from_pretrained(adapter),
    "AutoModel": lambda: load(adapter),
    "load_adapter": load_adapter,
    "pipeline": lambda: transformers.pipeline("text-generation", model=adapter, device="cpu").model,
}
assert "peft_plnd" not in sys.modules
for name, way in ways.items():  # each in a process of its own, for which the libraries are imported already
    if os.fork() == 0:
        with torch.no_grad():
            print(name, way()(torch.arange(5, 25)[None]).logits.double().abs().sum().item(), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> tuple[Path, dict[str, float]]:
    """A saved neuron-select adapter of the demo's model that changes a lot; what it and the base say to some tokens."""
    from peft import get_peft_model

    from peft_plnd import NeuronSelectConfig

    base = load_model(str(demo_model()), dtype="auto", device="cpu")  # as transformers loads it by itself
    ids, said = torch.arange(5, 25)[None], {}
    with torch.no_grad():
        said["base"] = base(ids).logits.double().abs().sum().item()
        tuned = get_peft_model(base, NeuronSelectConfig(fraction=0.1, init_weights=False, task_type="CAUSAL_LM")).eval()
        said["adapter"] = tuned(ids).logits.double().abs().sum().item()
    folder = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(folder)
    return folder, said


@pytest.mark.slow
def test_adapters_load_in_programs_that_import_nothing_of_ours(adapter):
    """By PEFT, by transformers and by a pipeline; each gives the tuned model's logits. Without the bridge none does."""
    folder, said = adapter
    found = dict(line.split() for line in output(sys.executable, "-c", WAYS, demo_model(), folder).splitlines())
    assert found.keys() == {"PeftModel", "AutoPeftModel", "AutoModel", "load_adapter", "pipeline"}
    assert abs(said["adapter"] / said["base"] - 1) > 1e-3
    assert all(abs(float(value) / said["adapter"] - 1) < 1e-4 for value in found.values()), (said, found)
    off = execute(sys.executable, "-c", WAYS, demo_model(), folder, PLND_BRIDGE=0)
    assert off.stdout == "" and off.stderr.count("KeyError: 'NEURON_SELECT'") >= len(found)


@pytest.mark.slow
def test_lm_evals_own_model_takes_the_adapter(adapter, tmp_path):
    """`lm_eval --model hf --model_args …,peft=`: other bits per byte than those of the base."""
    bits = {}
    for name, further in {"base": "", "adapter": f",peft={adapter[0]}"}.items():
        arguments = f"pretrained={demo_model()},dtype=float32,max_length=128{further}"
        metadata = json.dumps({"data_dir": str(demo_corpus("evaluate")), "text_documents": "all"})
        done = execute(
            sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments, "--limit", "1",
            "--include_path", tasks_folder(), "--tasks", "plnd_text_zh", "--metadata", metadata, "--device", "cpu",
            "--output_path", tmp_path / name,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        (results,) = (tmp_path / name).rglob("results*.json")
        bits[name] = json.loads(results.read_text())["results"]["plnd_text_zh"]["bits_per_byte,none"]
    assert abs(bits["adapter"] - bits["base"]) > 0.01


def test_pip_knows_the_start_up_line():
    """The line is among the distribution's recorded files, so that `pip uninstall` removes it."""
    assert Path(output(sys.executable, "-c", FIND_LINE).strip()).is_file()


def test_module_needs_no_bridge():
    """`python -m lm_eval_plnd` registers the name itself and hands over to lm-eval's command line."""
    code = """
import runpy, sys
sys.argv[1:] = ["--help"]
try: runpy.run_module("lm_eval_plnd", run_name="__main__", alter_sys=True)
except SystemExit: pass
"""
    assert report(code, PLND_BRIDGE=0)["models"]["plnd"] == TARGET
    help_text = output(sys.executable, "-m", "lm_eval_plnd", "--help", PLND_BRIDGE=0)
    assert "python -m lm_eval_plnd --model plnd" in help_text and "usage: lm-eval" in help_text


@pytest.mark.slow
@pytest.mark.parametrize("run", [(), ("run",)], ids=["without run", "run"])
@pytest.mark.parametrize("program", ["lm_eval", "lm-eval"])
def test_lm_evals_own_commands_reach_the_model(program, run):
    """Each of lm-eval's commands builds our model, which names the file that it is given and does not find."""
    script = Path(sysconfig.get_path("scripts"), program)
    arguments = ["--model", "plnd", "--model_args", "mask=no_such_file.safetensors", "--tasks", "wikitext"]
    done = execute(script, *run, *arguments)
    assert done.returncode != 0
    assert "no_such_file.safetensors" in done.stderr.splitlines()[-1]
    switched_off = execute(script, *run, *arguments, PLND_BRIDGE=0)
    assert "no model for this name" in switched_off.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the repository to build in."""
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    return shutil.copytree(REPOSITORY, tmp_path_factory.mktemp("source") / "plnd", ignore=ignored)


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    """The wheel as a release makes it: source archive first, the wheel from that."""
    folder = tmp_path_factory.mktemp("dist")
    output(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("built", "options"),
    [("wheel", ()), ("source", ()), ("source", ("--editable",))],
    ids=["wheel", "folder", "editable"],
)
def test_every_way_to_install_brings_the_bridge_and_uninstall_takes_it_away(built, options, request, tmp_path):
    """In a new environment: the name is registered after the installation; after its removal no file is left.

    Between them, the commands that README begins with find what they need of the package, with no repository around.
    """
    what = request.getfixturevalue(built)
    environment = tmp_path / "venv"
    output(sys.executable, "-m", "venv", "--without-pip", environment)
    before = files(environment)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    pip = (sys.executable, "-m", "pip", "--python", python)

    # Libraries are lent by this environment, as folders on the path: its own start-up lines do not run there.
    site_packages = Path(output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    lent = site_packages / "lent.pth"
    lent.write_text("".join({f"{distribution(name).locate_file('')}\n" for name in ("lm-eval", "setuptools")}))
    assert "plnd" not in report("import lm_eval.models", python)["models"]

    output(*pip, "install", "--ignore-installed", "--no-deps", "--no-build-isolation", *options, what)
    assert report("import lm_eval.models", python)["models"]["plnd"] == TARGET
    assert "plnd-demo" in output(scripts / "plnd", "demo", "--help")
    if built == "wheel":
        text = '{text: {task: "plnd_text_{language}", limit: 1, metadata: {data_dir: "plnd:corpus/evaluate"}}}'
        settings = ("--set", f"tasks={text}", "--set", "experiments={table1: text}")  # its other task is on the hub
        assert "minutes" in output(scripts / "plnd", "experiment", "demo", "--dry-run", *settings)
    assert Path(output(python, "-c", "import plnd_tasks; print(plnd_tasks.__file__)").strip()).is_file()

    lent.unlink()
    output(*pip, "uninstall", "--yes", "plnd")
    assert files(environment) == before
