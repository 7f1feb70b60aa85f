"""What several tests of tensor maths share."""

import pytest

from noisyrl.ops import advantages, quantiles, risk


@pytest.fixture(scope="module", params=["kernels", "tensors"])
def kernels_or_tensors(request):
    """Every test with the compiled loops of a processor, and again with the tensor operations of other devices."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tensors":
            for module in (advantages, quantiles, risk):
                patch.setattr(module, "takes_kernels", lambda *_: False)
        yield
