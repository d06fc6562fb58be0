"""Options of `pytest benchmarks/ --benchmark-only`, and the conditions it runs under."""

from __future__ import annotations

import pytest
import torch

from benchmarks import common, results


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("asegnet_fast benchmarks")
    group.addoption("--all-levels", action="store_true", help="every level of both networks, not one")
    group.addoption("--with-compile", action="store_true", help="torch.compile among the peers")
    group.addoption("--on", default="cpu", choices=("cpu", "cuda"), help="device")


def _settings(config: pytest.Config) -> common.Settings:
    device = torch.device(config.getoption("--on"))
    return common.Settings(device, torch.get_num_threads(), with_compile=config.getoption("--with-compile"))


def pytest_report_header(config: pytest.Config) -> str:
    settings = _settings(config)
    about = results.conditions(settings.device, settings.threads)
    return ", ".join(f"{name}: {value}" for name, value in about.items())


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> common.Settings:
    return _settings(request.config)
