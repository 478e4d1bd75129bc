"""Attacks by model files: what hides code, leaves its folder, lies about sizes, never ends, or was changed later.

Each is refused with a clear error; nothing of it is executed, nothing is left behind, memory and time are bounded.
Proved elsewhere: order, numbers and kills of the registry (registry), damaged boosters in a scorer (inference).
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import resource
import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivetrain.adapters.sqlite import open_control_log
from drivetrain.core.errors import DrivetrainError
from drivetrain.embedded.modelling import LOADER, LinearTexts, importer_of
from drivetrain.lineage.lineage import Lineage
from drivetrain.registry.artifacts import ARTIFACT_BYTES_MAX
from drivetrain.registry.candidates import FittedBlock, FittedText, Terms
from drivetrain.registry.importing import Importer
from drivetrain.registry.store import Registry
from drivetrain.registry.trials import TrialLimits, Trials

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx", reason="the extra `train` is not installed")
helper, FLOAT, INT64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

TEN_GB = 10 * 1024**3
MEMORY_BYTES_MAX = 300 * 1024**2
"""How much more memory a refusal may take at its peak than the tests before it took."""
TIME_S_MAX = 10.0
"""Of processor time, here and in the processes that try an artifact: one that stands still uses none."""
WAIT_S_MAX = 60.0
"""Of any time: for what waits, and uses no processor."""


class Place:
    """A registry, a canary that only code of an attack would make, and where attacks lie."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.attacks = root / "attacks"
        self.attacks.mkdir()
        self.canary = root / "canary"
        control = open_control_log(root / "data", root / "keys")
        self.control = control
        self.registry = Registry(root / "data/models", control, Lineage(control))
        with self.registry.workplaces.folder():
            pass  # the place for working folders is there from now on

    def listing(self) -> list[str]:
        return sorted(str(one.relative_to(self.root)) for one in self.root.rglob("*"))

    def file(self, name: str, content: bytes) -> Path:
        path = self.attacks / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def import_path(self, path: Path) -> Any:
        return importer_of(self.registry).import_path(path, Terms(name="victim"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Payload:
    """A pickle that makes the canary when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self._canary,)


# ONNX.


def graph(nodes: list[Any], *, initializers: tuple[Any, ...] = (), output: str = "y", **model: Any) -> bytes:
    """A model of these nodes from the input `x` (rows, 2)."""
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", FLOAT, [None, 2])],
        [helper.make_tensor_value_info(output, FLOAT, [None, 2])],
        list(initializers),
    )  # fmt: skip
    opsets = model.pop("opsets", [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)])
    content: bytes = helper.make_model(made, opset_imports=opsets, ir_version=9, **model).SerializeToString()
    return content


def node(operator: str, inputs: list[str], outputs: list[str], **given: Any) -> Any:
    return helper.make_node(operator, inputs, outputs, **given)


def sized(name: str, count: int) -> Any:
    return helper.make_tensor(name, INT64, [1], [count])


def external(location: str) -> bytes:
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=[2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return graph([node("Add", ["x", "w"], ["y"])], initializers=(tensor,))


def declared(dims: list[int]) -> bytes:
    tensor = onnx.TensorProto(name="w", data_type=FLOAT, dims=dims, raw_data=b"\0" * 8)
    return graph([node("Add", ["x", "w"], ["y"])], initializers=(tensor,))


def nested(depth: int) -> bytes:
    flag = helper.make_tensor("flag", onnx.TensorProto.BOOL, [], [True])
    inner = helper.make_graph([node("Identity", ["x"], ["z"])], "leaf", [], [helper.make_empty_tensor_value_info("z")])
    for level in range(depth):
        name = f"z{level}"
        choice = helper.make_node("If", ["flag"], [name], then_branch=inner, else_branch=inner)
        if level < depth - 1:
            inner = helper.make_graph([choice], f"g{level}", [], [helper.make_empty_tensor_value_info(name)])
    return graph([choice], initializers=(flag,), output=name)


def looping() -> bytes:
    body = helper.make_graph(
        [node("Identity", ["c"], ["d"]), node("Identity", ["v"], ["w"])], "body",
        [helper.make_tensor_value_info("i", INT64, []), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", FLOAT, [None, 2])],
        [helper.make_tensor_value_info("d", onnx.TensorProto.BOOL, []),
         helper.make_tensor_value_info("w", FLOAT, [None, 2])],
    )  # fmt: skip
    return graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)], initializers=(sized("n", 2**62),)
    )  # fmt: skip


def function() -> bytes:
    own = helper.make_function("", "Own", ["a"], ["b"], [node("Own", ["a"], ["b"])], [helper.make_opsetid("", 17)])
    return graph([node("Relu", ["x"], ["y"])], functions=[own])


def forest(**changes: Any) -> bytes:
    """One tree: 0 -> (1, 2); `changes` replace attributes."""
    attributes = {
        "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
        "nodes_values": [0.0, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
        "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0],
        "n_targets": 1, **changes,
    }  # fmt: skip
    return graph([helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **attributes)])


ONNX: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "no version of ONNX"),
    "noise": (lambda: bytes(range(256)) * 40, "is no ONNX model"),
    "text": (lambda: b"import os; os.system('x')", "is no ONNX model"),
    "a length of 10 GB": (lambda: b"\x08\x09\x3a\x80\x80\x80\x80\x28", "says to have 10,737,418,240 bytes"),
    "an endless number": (lambda: b"\x08" + b"\xff" * 100, "never ends"),
    "cut off": (lambda: graph([node("Relu", ["x"], ["y"])])[:-3], "says to have"),
    "external data": (lambda: external("weights.bin"), "lies in another file"),
    "external data that climbs": (lambda: external("../../../../etc/passwd"), "lies in another file"),
    "external data by path": (lambda: external("/etc/passwd"), "lies in another file"),
    "a tensor of 10 GB": (lambda: declared([TEN_GB // 4]), "2,684,354,560 elements"),
    "a tensor larger than it is": (lambda: declared([1_000]), "and has others"),
    "a tensor of negative size": (lambda: declared([-1]), "no possible shape"),
    "a cycle": (
        lambda: graph([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]),
        "has a cycle",
    ),
    "an operator that waits for itself": (lambda: graph([node("Add", ["x", "y"], ["y"])]), "has a cycle"),
    "nothing gives it": (lambda: graph([node("Add", ["x", "ghost"], ["y"])]), "nothing gives 'ghost'"),
    "made twice": (lambda: graph([node("Relu", ["x"], ["y"]), node("Relu", ["x"], ["y"])]), "made twice"),
    "graphs in graphs": (lambda: nested(12), "more than 4 deep"),
    "a loop": (looping, "'Loop' is not one"),
    "a function of its own": (function, "functions of its own"),
    "another domain": (
        lambda: graph([node("Relu", ["x"], ["y"], domain="com.evil")]),
        "domain 'com.evil' are not the standard's",
    ),
    "another domain announced": (
        lambda: graph([node("Relu", ["x"], ["y"])], opsets=[helper.make_opsetid("com.evil", 1)]),
        "domain 'com.evil' are not the standard's",
    ),
    "an unknown operator": (lambda: graph([node("RunShell", ["x"], ["y"])]), "'RunShell' is not one"),
    "chance": (lambda: graph([node("RandomNormalLike", ["x"], ["y"])]), "'RandomNormalLike' is not one"),
    "memory out of nothing": (
        lambda: graph([node("ConstantOfShape", ["n"], ["y"])], initializers=(sized("n", TEN_GB),)),
        "makes 10,737,418,240 elements out of nothing",
    ),
    "memory by a computed size": (
        lambda: graph(
            [node("Mul", ["n", "n"], ["m"]), node("ConstantOfShape", ["m"], ["y"])], initializers=(sized("n", 99_999),)
        ),
        "a size that does not stand in the model",
    ),
    "memory by a constant": (
        lambda: graph([node("Constant", [], ["n"], value_ints=[TEN_GB]), node("Expand", ["x", "n"], ["y"])]),
        "makes 10,737,418,240 elements out of nothing",
    ),
    "a tree with a cycle": (
        lambda: forest(nodes_modes=["BRANCH_LEQ"] * 3, nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0]),
        "or a cycle",
    ),
    "a tree with a missing node": (lambda: forest(nodes_truenodeids=[7, 0, 0]), "has no node 7"),
    "a tree with lists of different lengths": (lambda: forest(nodes_truenodeids=[1]), "lists of different lengths"),
    "a leaf that is not there": (lambda: forest(target_nodeids=[1, 9]), "leaf of its trees is not there"),
}


@pytest.mark.parametrize("attack", ONNX)
def test_an_onnx_file_that_attacks_is_refused_before_any_runtime_sees_it(
    place: Place, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, said = ONNX[attack]
    path = place.file("attack.onnx", build())
    monkeypatch.setattr("drivetrain.registry.trials.Trials.open", _never)
    assert said in refused(place, path)


def test_the_onnx_files_that_attacks_are_made_from_are_taken(place: Place) -> None:
    """Else the tests above would prove nothing."""
    assert place.import_path(place.file("forest.onnx", forest())).number == 1
    wide = graph(
        [
            node("Constant", [], ["n"], value_ints=[1, 2]),
            node("Expand", ["x", "n"], ["z"]),
            node("ReduceMean", ["z"], ["y"], axes=[1]),
        ]
    )
    assert place.import_path(place.file("wide.onnx", wide)).number == 2


@pytest.mark.parametrize("name", ["m.onnx", "m.txt", "m.json", "m.ubj", "m.lgb", "m.pkl", "m.joblib"])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_under_any_name_is_never_loaded(place: Place, name: str, protocol: int) -> None:
    path = place.file(name, pickle.dumps(Payload(place.canary), protocol=protocol))
    said = refused(place, path)
    if protocol and name.endswith((".onnx", ".pkl")):
        lines = said.splitlines()[-3:]
        assert lines == [
            "import joblib, drivetrain as dt", f"model = joblib.load({str(path)!r})",
            "dt.import_model(model, 'victim', sample=rows)  # rows as the model sees them",
        ]  # fmt: skip


def test_an_mlflow_folder_with_a_pickle_is_refused_with_the_lines_that_convert_it(place: Place) -> None:
    place.file("model/model.pkl", pickle.dumps(Payload(place.canary)))
    mark = "flavors:\n  python_function:\n    loader_module: mlflow.sklearn\n  sklearn:\n    pickled_model: model.pkl\n"
    place.file("model/MLmodel", mark.encode())
    folder = place.attacks / "model"
    assert refused(place, folder).splitlines()[-3:] == [
        "import mlflow, drivetrain as dt",
        f"model = mlflow.sklearn.load_model({str(folder)!r})",
        "dt.import_model(model, 'victim', sample=rows)  # rows as the model sees them",
    ]


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("flavors: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{canary}]]", "read"),
        ("a: &a [x,x]\nb: &b [*a,*a,*a]\nflavors: *b", "anchors"),
        ("[" * 5_000, "nested too deeply"),
        ("a: " + "- " * 5_000, "cannot be read"),
        ("- " * 5_000 + "a", "nested too deeply"),
        ("? " * 5_000 + "a", "nested too deeply"),
        ("x" * 300_000, "more than 262,144 bytes"),
        ("flavors: {{onnx: {{data: ../../secret.onnx}}}}", "no path of a file"),
        ("flavors: {{onnx: {{data: /etc/passwd}}}}", "no path of a file"),
        ("flavors: {{onnx: {{data: link.onnx}}}}", "leads through a link"),
        ("flavors: {{onnx: {{data: [1]}}}}", "names no file"),
        ("flavors: {{torch: {{}}}}", "its flavors are `torch`"),
        ("[1, 2]", "no mapping"),
    ],
)
def test_an_mlmodel_that_attacks_is_refused(place: Place, mark: str, said: str) -> None:
    place.file("model/MLmodel", mark.format(canary=place.canary).encode())
    place.file("secret.onnx", forest())
    (place.attacks / "model/link.onnx").symlink_to(place.attacks / "secret.onnx")
    assert said in refused(place, place.attacks / "model")


# Archives.


def zipped(*members: tuple[str, bytes], mode: int = 0, **info: Any) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            member.compress_type = info.get("method", zipfile.ZIP_DEFLATED)
            archive.writestr(member, content)
    return packed.getvalue()


def lying_zip(size: int) -> bytes:
    """A member that says to have another size than it has, in both of its headers."""
    content = bytearray(zipped(("m.onnx", b"x" * 1_000)))
    directory = content.find(b"PK\x01\x02")
    struct.pack_into("<L", content, directory + 24, size)
    struct.pack_into("<L", content, 22, size)
    return bytes(content)


def tarred(*members: tuple[tarfile.TarInfo, bytes], packed: bool = True) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz" if packed else "w") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Any:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    return info, content


def long_name_of(size: int) -> bytes:
    """A header that says to carry a name of so many bytes, all zeros, well packed."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=1) as packed:
        packed.write(info.tobuf(tarfile.GNU_FORMAT))
        packed.write(b"\0" * 8 * 1024**2)
    return made.getvalue()


def declared_tar(size: int) -> bytes:
    info = tarfile.TarInfo("m.onnx")
    info.size = size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4_096)


def bomb() -> bytes:
    """Zeros that unpack a thousandfold, in members that each say so honestly."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.onnx", b"x")
    content = bytearray(made.getvalue())
    directory = content.find(b"PK\x01\x02")
    struct.pack_into("<L", content, directory + 24, 0xFFFFFFF0)
    return bytes(content)


ARCHIVES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "a climbing path": ("a.zip", lambda: zipped(("../../evil.onnx", b"x")), "no path of a file"),
    "a path from the root": ("a.zip", lambda: zipped(("/tmp/evil.onnx", b"x")), "no path of a file"),
    "a path of Windows": ("a.zip", lambda: zipped(("..\\evil.onnx", b"x")), "no path of a file"),
    "a drive": ("a.zip", lambda: zipped(("C:evil.onnx", b"x")), "no path of a file"),
    "a link": ("a.zip", lambda: zipped(("m.onnx", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777), "link or a device"),
    "a pipe": ("a.zip", lambda: zipped(("m.onnx", b""), mode=stat.S_IFIFO | 0o777), "link or a device"),
    "twice": ("a.zip", lambda: zipped(("m.onnx", b"x"), ("M.onnx", b"y")), "in it twice"),
    "file and folder": ("a.zip", lambda: zipped(("m", b"x"), ("m/a.onnx", b"y")), "file and a folder"),
    "another packing": ("a.zip", lambda: zipped(("m.onnx", b"x"), method=zipfile.ZIP_LZMA), "other than deflate"),
    "many members": ("a.zip", lambda: zipped(*((f"f{n}", b"") for n in range(600))), "more than 512 members"),
    "a size of 4 GB": ("a.zip", bomb, "fewer bytes than it says"),
    "more than it says": ("a.zip", lambda: lying_zip(10), "is damaged"),
    "an archive in an archive": ("a.zip", lambda: zipped(("b.zip", zipped(("m.onnx", forest())))), "no files that"),
    "no archive": ("a.zip", lambda: b"PK\x03\x04" + b"\0" * 100, "no whole zip"),
    "a tar that climbs": ("a.tar.gz", lambda: tarred(member("../evil.onnx", b"x")), "no path of a file"),
    "a tar from the root": ("a.tgz", lambda: tarred(member("/evil.onnx", b"x")), "no path of a file"),
    "a symlink": ("a.tar.gz", lambda: tarred(member("m.onnx", b"", tarfile.SYMTYPE, "/etc/passwd")), "is a link"),
    "a link and a file through it": (
        "a.tar",
        lambda: tarred(member("d", b"", tarfile.SYMTYPE, "/tmp"), member("d/evil.onnx", b"x"), packed=False),
        "is a link",
    ),
    "a hard link": (
        "a.tar",
        lambda: tarred(member("m", b"", tarfile.LNKTYPE, "/etc/passwd"), packed=False),
        "is a link",
    ),
    "a device": ("a.tar", lambda: tarred(member("m.onnx", b"", tarfile.CHRTYPE), packed=False), "is a link, a device"),
    "a tar of 10 GB": ("a.tar.gz", lambda: declared_tar(TEN_GB), "say to have more than"),
    "a name of 10 GB": ("a.tar.gz", lambda: long_name_of(TEN_GB), "a header in it says to have"),
    "a broken gzip": ("a.tar.gz", lambda: b"\x1f\x8b" + b"\0" * 50, "damaged"),
}


@pytest.mark.parametrize("attack", ARCHIVES)
def test_an_archive_that_attacks_is_refused_and_nothing_of_it_stays(place: Place, attack: str) -> None:
    name, build, said = ARCHIVES[attack]
    assert said in refused(place, place.file(name, build()))


def test_what_unpacks_beyond_the_limit_is_stopped_as_it_comes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros behind the only member: a member's size is honest, and the stream never ends."""
    monkeypatch.setattr("drivetrain.registry.archives.ARTIFACT_BYTES_MAX", 1024**2)
    monkeypatch.setattr("drivetrain.registry.archives.MEMBERS_MAX", 4)
    many = tarred(*(member(f"f{n}.onnx", b"\0" * 600_000) for n in range(3)))
    assert "more than" in refused(place, place.file("a.tar.gz", many))


# Sizes.


@pytest.mark.parametrize(
    "name", ["m.onnx", "m.txt", "m.json", "m.ubj", "m.zip", "m.tar", "m.tar.gz", "linear_text.json"]
)
def test_a_file_of_10_gb_is_refused_unread(place: Place, name: str) -> None:
    path = place.file(name, b"{L" if name.endswith("ubj") else b"PK\x03\x04" if name.endswith("zip") else b"tree\n")
    with path.open("r+b") as file:
        file.truncate(TEN_GB)  # sparse: it takes no room
    refused(place, path)


def test_a_linear_text_whose_header_says_10_gb_is_refused(place: Place) -> None:
    block = FittedBlock(
        analyzer="word", ngrams=(1, 1), terms=("card", "refund"), idf=_ones(2), use_idf=True, lowercase=True,
        strip_accents="", stop_words=(), binary=False, sublinear_tf=False, norm="l2", weight=1.0,
    )  # fmt: skip
    files = LinearTexts().write(
        FittedText(blocks=(block,), labels=("a", "b"), weights=_ones((2, 2)), bias=_ones(2), link="softmax")
    )
    for name, content in files.items():
        place.file(f"text/{name}", content)
    assert place.import_path(place.attacks / "text").number == 1
    header = (place.attacks / "text/linear_text.json").read_bytes()
    place.file("text/linear_text.json", re.sub(rb'"terms": 2', b'"terms": 1342177280', header))
    assert "sound" in refused(place, place.attacks / "text")
    place.file("text/linear_text.json", header)
    place.file("text/run.py", b"raise SystemExit")
    assert "'run.py' is no part" in refused(place, place.attacks / "text")


UBJ = {
    "a list of 10 GB": b"{L" + struct.pack(">q", 1) + b"a[$l#L" + struct.pack(">q", TEN_GB),
    "a text of 10 GB": b"{L" + struct.pack(">q", 1) + b"aSL" + struct.pack(">q", TEN_GB),
    "a count below zero": b"{L" + struct.pack(">q", -1),
    "a thousand lists": b"{L" + struct.pack(">q", 1) + b"a" + b"[" * 1_000,
    "a list of lists of 10 GB": b"{L" + struct.pack(">q", 1) + b"a[#L" + struct.pack(">q", TEN_GB),
}


@pytest.mark.parametrize("attack", UBJ)
def test_a_ubj_file_that_lies_about_sizes_is_refused_by_us_and_not_by_the_library(
    place: Place, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivetrain.registry.trials.Trials.open", _never)
    assert "is no XGBoost model" in refused(place, place.file("m.ubj", UBJ[attack]))


# What only running it shows: it is scored once, in a process of its own.


def hungry(side: int) -> bytes:
    """A column against a row, both of a length that may be made: side x side numbers."""
    nodes = [
        node("ReduceSum", ["x"], ["s"], keepdims=1),
        node("Expand", ["s", "down"], ["a"]), node("Expand", ["s", "across"], ["b"]),
        node("Add", ["a", "b"], ["c"]), node("ReduceMean", ["c"], ["y"], keepdims=1),
    ]  # fmt: skip
    sizes = (helper.make_tensor("down", INT64, [2], [side, 1]), helper.make_tensor("across", INT64, [2], [1, side]))
    return graph(nodes, initializers=sizes)


def dividing() -> bytes:
    """The least whole number by -1, which has no result: the processor stops the process that asks."""
    nodes = [
        node("Cast", ["x"], ["i"], to=INT64), node("Sub", ["i", "i"], ["z"]), node("Add", ["z", "least"], ["a"]),
        node("Add", ["z", "minus"], ["b"]), node("Div", ["a", "b"], ["q"]), node("Cast", ["q"], ["y"], to=FLOAT),
    ]  # fmt: skip
    return graph(nodes, initializers=(sized("least", -(2**63)), sized("minus", -1)))


def endless(steps: int = 3_000, side: int = 1_000, *, start: str = "x") -> bytes:
    """Matrices of a million numbers, multiplied one after another: minutes of work in a small file.

    start: `x`, or `square`, which stands in the model: a runtime computes what follows from it when it loads.
    """
    nodes = [node("Cast", [start], ["c"], to=FLOAT), node("ReduceSum", ["c"], ["s"], keepdims=1)]
    nodes += [node("Flatten", ["s"], ["f"]), node("Expand", ["f", "square"], ["m0"])]
    nodes += [node("MatMul", [f"m{step}", "m0"], [f"m{step + 1}"]) for step in range(steps)]
    nodes += [node("ReduceMean", [f"m{steps}"], ["y"], keepdims=1)]
    return graph(nodes, initializers=(helper.make_tensor("square", INT64, [2], [side, side]),))


RUNNING: dict[str, tuple[Callable[[], bytes], TrialLimits, str]] = {
    "memory for 360 GB": (lambda: hungry(300_000), TrialLimits(), "needs more memory than it may take"),
    "memory for 6 GB": (lambda: hungry(40_000), TrialLimits(), "needs more memory than it may take"),
    "a division that ends the process": (dividing, TrialLimits(), "ended the process that was to score 1 rows: signal"),
    "work for minutes when it is loaded": (
        lambda: endless(start="square"),
        TrialLimits(load_s=2.0),
        "takes more than 2 s to load it",
    ),
    "work for minutes": (endless, TrialLimits(batch_s=1.0), "takes more than 1 s to score 1 rows"),
}


@pytest.mark.parametrize("attack", RUNNING)
def test_an_onnx_file_that_attacks_when_it_is_run_takes_nothing_with_it(place: Place, attack: str) -> None:
    build, limits, said = RUNNING[attack]
    path = place.file("attack.onnx", build())
    assert said in refused(place, path, importer(place, limits))
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < limits.memory_for(0)


def test_the_onnx_files_that_attack_when_they_are_run_do_so_by_size_only(place: Place) -> None:
    """Else the test above would prove nothing."""
    assert place.import_path(place.file("hungry.onnx", hungry(300))).number == 1
    assert place.import_path(place.file("short.onnx", endless(steps=20, side=10))).number == 2


# Boosters.


def test_a_booster_whose_trees_never_end_is_refused(place: Place) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="the extra `models` is not installed")
    rows, labels = _rows()
    model = lightgbm.LGBMClassifier(n_estimators=2, num_leaves=5, verbose=-1, n_jobs=1).fit(rows, labels)
    text = model.booster_.model_to_string()
    assert place.import_path(place.file("m.txt", text.encode())).number == 1
    children = re.search(r"\nleft_child=([-\d]+) ", text)
    assert children is not None
    cyclic = text[: children.start(1)] + "0".rjust(len(children[1]), "0") + text[children.end(1) :]
    assert cyclic != text
    refused(place, place.file("m.txt", cyclic.encode()))


def test_an_xgboost_file_whose_trees_never_end_is_refused(place: Place) -> None:
    xgboost = pytest.importorskip("xgboost", reason="the extra `models` is not installed")
    rows, labels = _rows()
    content = bytes(
        xgboost.XGBClassifier(n_estimators=2, max_depth=2, n_jobs=1).fit(rows, labels).get_booster().save_raw("json")
    )
    assert place.import_path(place.file("m.json", content)).number == 1
    cyclic = re.sub(rb'"left_children":\[1,', b'"left_children":[0,', content)
    assert cyclic != content
    refused(place, place.file("m.json", cyclic))


# After approval.


def test_a_file_that_changes_after_approval_is_not_loaded(place: Place) -> None:
    place.import_path(place.file("forest.onnx", forest()))
    pinned = place.registry.resolve("victim")
    file = place.registry.open(pinned) / "model.onnx"
    other = forest(target_weights=[9.0, 9.0])
    assert len(other) == len(file.read_bytes())
    file.write_bytes(other)
    with pytest.raises(DrivetrainError, match="not what was approved"):
        place.registry.open(pinned)
    assert not place.registry.verify("victim").whole


@pytest.mark.parametrize("kind", ["link", "folder link", "pipe"])
def test_what_is_no_plain_file_is_not_followed(place: Place, kind: str) -> None:
    import os

    outside = place.file("outside/model.onnx", forest())
    path = place.attacks / "m.onnx"
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = place.attacks / "folder"
        path.mkdir()
        (path / "m.onnx").symlink_to(outside)
    refused(place, path)


def test_the_limit_of_an_artifact_is_above_what_formats_need() -> None:
    assert ARTIFACT_BYTES_MAX < TEN_GB


def importer(place: Place, limits: TrialLimits) -> Importer:
    """As imports are wired, with other limits."""
    return Importer(place.registry, Trials(LOADER, limits).open, LinearTexts())


def refused(place: Place, path: Path, by: Importer | None = None) -> str:
    """The error of an import, after which everything is as it was before."""
    by = by or importer_of(place.registry)
    before, noted = place.listing(), len(list(place.control.records()))
    peak, began_s, began_cpu_s = _peak_bytes(), time.monotonic(), _cpu_s()
    with pytest.raises(DrivetrainError) as caught:
        by.import_path(path, Terms(name="victim"))
    assert _cpu_s() - began_cpu_s < TIME_S_MAX
    assert time.monotonic() - began_s < WAIT_S_MAX
    assert _peak_bytes() - peak < MEMORY_BYTES_MAX
    assert place.listing() == before
    assert len(list(place.control.records())) == noted
    assert not place.canary.exists()
    return str(caught.value)


def _cpu_s() -> float:
    of = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in of)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _never(*_: object) -> None:
    raise AssertionError("no scorer may see it")


def _ones(shape: Any) -> Any:
    import numpy as np

    return np.ones(shape)


def _rows() -> tuple[Any, Any]:
    import numpy as np

    rows = np.random.default_rng(7).normal(size=(200, 3))
    return rows, (rows[:, 0] > 0).astype(int) + (rows[:, 1] > 0)
