"""Hydra behind `hydra.main`, which is its one public way to run a command.

`hydra.main` reads `sys.argv`, prints errors itself, and sets up logging, which may call what a configuration names,
before anyone can look at that configuration. The object that it calls does none of this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from proxytune.compat import Name

_APPLICATION = "hydra._internal.hydra:Hydra"
_LOADER = "hydra._internal.config_loader_impl:ConfigLoaderImpl"
_FILES = "hydra._internal.config_repository:ConfigRepository"

NAMES = (
    Name("hydra", "_internal", "where what follows is"),
    Name(_APPLICATION, "run", "hydra.main without sys.argv, printed errors and exit"),
    Name(_APPLICATION, "multirun", "the same"),
    Name(_APPLICATION, "show_cfg", "the same: --cfg"),
    Name(_APPLICATION, "hydra_help", "the same: --hydra-help"),
    Name(_APPLICATION, "show_info", "the same: --info"),
    Name(_APPLICATION, "shell_completion", "the same: --shell-completion"),
    Name(_APPLICATION, "config_loader", "ours takes its place"),
    Name(_LOADER, "load_configuration", "a configuration is checked before Hydra acts on it", overridden=True),
    Name(_LOADER, "load_sweep_config", "a job is composed once", overridden=True),
    Name(_FILES, "load_config", "a file is read once", overridden=True),
    Name(_FILES, "initialize_sources", "what was read belongs to these", overridden=True),
    Name("hydra._internal.core_plugins.basic_sweeper:BasicSweeper", "split_arguments", "the jobs of a sweep"),
)

Check = Callable[[DictConfig, RunMode], object]
"""Looks at a composed configuration, Hydra's own part included: that of a job (RUN) or of a whole sweep (MULTIRUN)."""


@contextmanager
def application(config_dirs: Sequence[Path], check: Check) -> Iterator[Hydra]:
    """Hydra's own application object, over folders of configurations.

    Whatever it composes passes `check` before Hydra acts on it.
    """
    with initialize_config_dir(str(config_dirs[0]), job_name="proxytune", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        path = hydra.config_loader.get_search_path()
        for folder in config_dirs[1:]:
            path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        hydra.config_loader = CheckedLoader(path, check)
        yield hydra


def swept(hydra: Hydra) -> tuple[DictConfig | None, list[list[str]]]:
    """The sweep's configuration, if it was composed, and its jobs' overrides, if it fixes them beforehand."""
    loader = hydra.config_loader
    assert isinstance(loader, CheckedLoader)
    jobs = [] if loader.sweep is None else loader.jobs_of(loader.sweep)
    return loader.sweep, jobs


class FilesReadOnce(ConfigRepository):
    """Configuration files that are read once for all jobs of a sweep: parsing them takes most of composing a job."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        self._read: dict[str, ConfigResult | None] = {}
        super().initialize_sources(config_search_path)

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self._read:
            self._read[config_path] = super().load_config(config_path)
        return copy.deepcopy(self._read[config_path])

    def __deepcopy__(self, memo: object) -> FilesReadOnce:
        """Hydra copies it for every job; `initialize_sources` of a copy leaves this one as it is."""
        return copy.copy(self)


class CheckedLoader(ConfigLoaderImpl):
    """Composes and checks each configuration once, and all jobs of a sweep before its sweeper is built."""

    def __init__(self, path: ConfigSearchPath, check: Check) -> None:
        super().__init__(path)
        self.repository = FilesReadOnce(path)
        self.check = check
        self.jobs: dict[tuple[str, ...], DictConfig] = {}
        self.sweep: DictConfig | None = None
        """The configuration of the whole sweep, once it is composed."""
        self._number: int | None = None
        """Of the job that is being checked."""

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        try:
            config = super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        except (TypeError, AttributeError, AssertionError) as error:  # Hydra trusts that choices are names
            message = f"cannot compose a configuration from {' '.join(overrides)}: {error}"
            raise ConfigCompositionException(message) from error
        if self._number is not None:
            with open_dict(config):
                config.hydra.job.num = self._number
        self.check(config, run_mode)
        if run_mode == RunMode.MULTIRUN:
            for number, job in enumerate(self.jobs_of(config)):
                self._number = number
                self.load_sweep_config(config, job)
            self.sweep, self._number = config, None
        return config

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        job = tuple(sweep_overrides)
        if job not in self.jobs:
            self.jobs[job] = super().load_sweep_config(master_config, sweep_overrides)
        config = copy.deepcopy(self.jobs[job])
        OmegaConf.copy_cache(master_config, config)  # ${now:} is the same in all jobs
        return config

    def jobs_of(self, config: DictConfig) -> list[list[str]]:
        """The overrides of each job of Hydra's own sweeper. Other sweepers choose as they go, and check job by job."""
        if OmegaConf.select(config, "hydra.sweeper._target_") != f"{BasicSweeper.__module__}.BasicSweeper":
            return []
        params = config.hydra.sweeper.params or {}
        given = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
        overrides = OverridesParser.create(config_loader=self).parse_overrides(given)
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        return jobs
