"""Which devices a fit takes."""

import pytest
import torch

from pyro_armed.devices import checked_device
from pyro_armed.errors import ArgumentError
from pyro_armed.inference_settings import InferenceSettings


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", 1.5])
def test_devices_that_are_not_there(device):
    with pytest.raises(ArgumentError, match=r"cannot be used here; there is 'cpu'"):
        InferenceSettings(device=device)


def test_the_cpu_by_any_name():
    assert checked_device(None) == checked_device("cpu") == checked_device(torch.device("cpu"))
