"""The networks leave PyTorch: torch.export, ONNX and an AOTInductor package give the same masks.

ONNX knows nothing of this package's ops, so it is exported from the plain PyTorch references, which are gathers and
selects; torch.export and AOTInductor take both.
"""

import warnings

import pytest
import torch

import asegnet_fast as af
from tests import classic_nets

# A-SegNet holds every op that SegNet has.
NETWORKS = [pytest.param(af.models.SegNet, marks=pytest.mark.extended), af.models.ASegNet]
SHAPES = [(2, 1, 32, 48), (3, 1, 40, 24), (1, 1, 33, 47)]  # odd sides too
DYNAMIC = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)


def network(cls):
    """A narrow network whose statistics are not those it was born with."""
    torch.manual_seed(0)
    net = cls(in_channels=1, num_classes=2, widths=(8, 16), convs=(1, 2))
    for _ in range(2):
        net(torch.randn(4, 1, 16, 16))
    return net.eval()


def images(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cls", NETWORKS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_torch_export_with_free_sizes(cls, backend):
    net = network(cls)
    with af.use_backend(backend), torch.no_grad():
        program = torch.export.export(net, (images(SHAPES[0]),), dynamic_shapes=DYNAMIC)
        ours = {str(n.target).split(".")[0] for n in program.graph.nodes if n.op == "call_function"}
        assert ("asegnet_fast" in ours) == (backend == "auto")
        for shape in SHAPES:
            torch.testing.assert_close(program.module()(images(shape)), net(images(shape)))


@pytest.mark.parametrize("cls", NETWORKS)
def test_onnx_gives_the_same_masks(cls, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net = network(cls)
    with af.use_backend("reference"), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, (images(SHAPES[0]),), dynamo=True, verbose=False, dynamic_shapes=DYNAMIC
        )
    program.save(tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for shape in SHAPES:
        (logits,) = session.run(None, {session.get_inputs()[0].name: images(shape).numpy()})
        with torch.no_grad():
            expected = net(images(shape))
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)
        margin = (expected[:, 1] - expected[:, 0]).abs() > 1e-4
        same = torch.from_numpy(logits).argmax(1) == expected.argmax(1)
        assert bool(same[margin].all()) and margin.float().mean() > 0.99


@pytest.mark.extended
@pytest.mark.parametrize("cls", NETWORKS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_aot_inductor_package_runs(cls, backend, tmp_path):
    net = network(cls)
    with af.use_backend(backend), torch.no_grad():
        program = torch.export.export(net, (images(SHAPES[0]),))
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
        packaged = torch._inductor.aoti_load_package(path)
        torch.testing.assert_close(packaged(images(SHAPES[0])), net(images(SHAPES[0])), rtol=1e-4, atol=1e-5)


#: A fused pool and its unpool, and a fused gate.
FUSED = [classic_nets.SegNet, classic_nets.AttentionUNet]


def fused(cls):
    torch.manual_seed(0)
    net, x = cls().eval(), torch.randn(2, 2, 32, 32)
    assert af.fuse(net, (x,)).replaced
    return net, x


@pytest.mark.parametrize("cls", FUSED)
def test_torch_export_of_a_fused_model(cls):
    net, x = fused(cls)
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        assert any("asegnet_fast" in str(n.target) for n in program.graph.nodes)
        more = torch.cat([x, x[:1]])
        torch.testing.assert_close(program.module()(more), net(more))


@pytest.mark.extended
@pytest.mark.parametrize("cls", FUSED)
def test_onnx_and_aot_inductor_of_a_fused_model(cls, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    net, x = fused(cls)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = net(x)
        with af.use_backend("reference"):
            torch.onnx.export(net, (x,), dynamo=True, verbose=False).save(tmp_path / "net.onnx")
        package = torch._inductor.aoti_compile_and_package(
            torch.export.export(net, (x,)), package_path=str(tmp_path / "net.pt2")
        )
        packaged = torch._inductor.aoti_load_package(package)(x)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (by_onnx,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for got in (torch.from_numpy(by_onnx), packaged):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
