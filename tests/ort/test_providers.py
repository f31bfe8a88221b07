"""The table of providers: its rows, and the options that sessions get from them."""

from __future__ import annotations

import pytest

from spdexport.ort.providers import CPU, CUDA, OPENVINO, PROVIDERS, TENSORRT, Purpose, provider_named


def test_checks_pin_cuda_and_deployments_do_not():
    def options(purpose, provider=CUDA):
        return dict(provider.chain(purpose))

    pinned = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}
    assert options(Purpose.CHECK) == {"CUDAExecutionProvider": pinned, "CPUExecutionProvider": {}}
    assert options(Purpose.COARSE)["CUDAExecutionProvider"] == {**pinned, "use_tf32": "1"}
    assert options(Purpose.DEPLOYMENT)["CUDAExecutionProvider"] == {}
    assert list(options(Purpose.CHECK, TENSORRT)) == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert options(Purpose.CHECK, CPU) == {"CPUExecutionProvider": {}}


@pytest.mark.parametrize("row", PROVIDERS.values(), ids=lambda row: row.name)
def test_a_row_tells_a_coarse_format_from_a_check_where_it_has_both(row):
    assert provider_named(row.name) is row
    assert all(fallback in PROVIDERS.values() for fallback in row.fallbacks)
    assert [name for name, _ in row.chain(Purpose.CHECK)][-1] == "CPUExecutionProvider"
    if row.check is None:
        assert row.options(Purpose.CHECK) == row.options(Purpose.DEPLOYMENT)
    else:
        assert len({str(sorted(row.options(purpose).items())) for purpose in Purpose}) == len(Purpose)


def test_a_provider_with_threads_of_its_own_is_given_them():
    assert OPENVINO.options(Purpose.DEPLOYMENT, 3) == {"num_of_threads": "3"}
    assert OPENVINO.options(Purpose.DEPLOYMENT) == {}
    assert CUDA.options(Purpose.DEPLOYMENT, 3) == {}
