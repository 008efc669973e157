import pytest
import torch

from nnunet_ssp.training.threads import follow_threads

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # as nnU-Net's command on two cores
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("given", "said"), [("1", "1 thread,"), ("3,2", "3 threads,")])
def test_the_users_number_stands(monkeypatch, given, said):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    line = follow_threads(CPU)
    assert line == f"{said} as OMP_NUM_THREADS says."
    assert torch.get_num_threads() == int(given[0])


@pytest.mark.parametrize("given", [None, "", "0", "many"])
def test_without_a_number_nnunets_stands(monkeypatch, given):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert follow_threads(CPU) is None
    assert torch.get_num_threads() == 2


def test_other_devices_are_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert follow_threads(torch.device("meta")) is None
    assert torch.get_num_threads() == 2
