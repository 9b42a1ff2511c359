"""What every test runs under: one thread, no network, Triton's interpreter where there is no GPU; the golden cases."""

import os
from importlib.util import find_spec
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# the same examples in every run, none of them timed, none remembered
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    # read by triton when a kernel is defined, so before anything imports triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

# on few cores two threads make small operations slower, not faster
torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]


def torchvision_without_cuda() -> torch.library.Library | None:
    """Lets a torchvision that was built for CUDA import beside a torch that was not; None where nothing is to be done.

    Its compiled part cannot load there, and its Python part only misses the schemas of two operators. Image and video
    processors work then; the two operators themselves do not. The definitions live as long as the returned object.
    """
    if find_spec("torchvision") is None or torch.version.cuda is not None:
        return None
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


_TORCHVISION = torchvision_without_cuda()


def pytest_collection_modifyitems(items):
    """Tests marked ``gpu`` are skipped, with a reason, where there is no CUDA device."""
    if HAS_CUDA:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def golden():
    """``golden("divprune")`` is the folder with that method's golden cases.

    Looked for in $VTPRUNE_GOLDEN (default: ../shared/golden beside the repository), then in tests/golden; the test is
    skipped, with the places that were tried, where neither has any.
    """
    roots = (Path(os.environ.get("VTPRUNE_GOLDEN") or ROOT.parent / "shared" / "golden"), ROOT / "tests" / "golden")

    def folder(method: str) -> Path:
        for root in roots:
            if (root / method).is_dir() and any((root / method).iterdir()):
                return root / method
        tried = " or ".join(map(str, roots))
        pytest.skip(f"no golden case of {method!r} in {tried}; set VTPRUNE_GOLDEN to their parent folder")

    return folder
