"""DeepSpeed: the optimizer's state, the gradients and the weights divided among processes (ZeRO, arXiv:1910.02054)."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dalle3.errors import ConfigError, DependencyError
from dalle3.log import warn
from dalle3.runtime import stand_alone
from dalle3.train.parallel import NEW_MOMENTS, Moments, Processes
from dalle3.train.task import Metrics

SHARDS, MANIFEST = "shards", "deepspeed.json"
PROFILED_STEP = 3  # counted from 0; DALLE-pytorch's is 200
PROFILER = {"enabled": True, "profile_step": PROFILED_STEP, "module_depth": -1, "top_modules": 1, "detailed": True}


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """What DeepSpeed is asked for; a file of its own settings goes before all of it.

    Attributes:
        stage: 0 divides nothing, 1 the optimizer's state, 2 gradients too, 3 weights too.
        offload: keep the optimizer's state in the memory of the CPU.
    """

    stage: int = 0
    offload: bool = False
    file: Path | None = None

    def divides(self) -> int:
        """The stage that applies.

        Raises:
            ConfigError: the file cannot be read.
        """
        theirs = _object(self.file).get("zero_optimization") if self.file else None
        return self.stage if theirs is None else int(theirs.get("stage", 0))

    def settings(self, *, batch_size: int, ga_steps: int, clip: float, dtype: torch.dtype) -> dict[str, Any]:
        """DeepSpeed's configuration as a JSON object.

        Matrix products below float32 are autocast, as on one device: weights stay float32.

        Raises:
            ConfigError: the file cannot be read, or contradicts the batch of the run.
        """
        zero: dict[str, Any] = {"stage": self.stage}
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        ours = {
            "train_micro_batch_size_per_gpu": batch_size,
            "gradient_accumulation_steps": ga_steps,
            "gradient_clipping": clip,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # its own Adam for CPUs would have to be compiled first
            "torch_autocast": {"enabled": dtype != torch.float32, "dtype": str(dtype).removeprefix("torch.")},
            "steps_per_print": 10**9,
        }
        return {**ours, **_read(self.file, ours)} if self.file else ours


class DeepSpeed(Processes):
    """One of several processes under DeepSpeed; alone, it is the only one.

    Args:
        settings: as `ZeroConfig.settings` gives them.
    Raises:
        DependencyError: deepspeed is not installed.
    """

    def __init__(self, device: torch.device, settings: dict[str, Any]) -> None:
        self.deepspeed = _import()
        if not torch.distributed.is_initialized() and stand_alone():
            _meet_alone(device)
        super().__init__(device)
        self.deepspeed.init_distributed(verbose=False)
        self.settings = settings
        self.stage = int(settings["zero_optimization"].get("stage", 0))
        self.splits_weights = self.stage == 3
        # without ZeRO, float32 weights are the optimizer's own; DeepSpeed then tells no norm, and fails to clip scalars
        undivided = self.stage == 0 and not any(settings.get(kind, {}).get("enabled") for kind in ("bf16", "fp16"))
        self.clip = settings["gradient_clipping"] if undivided else None
        if undivided:
            self.settings = {**settings, "gradient_clipping": 0.0}

    def wrap(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Takes charge of the objective and of what changes its weights."""
        scalars = [parameter for parameter in objective.parameters() if parameter.ndim == 0]
        self.scalars = {id(scalar) for scalar in scalars}
        with _sendable(scalars, splits_weights=self.splits_weights):
            self.engine, self.optimizer, _, _ = self.deepspeed.initialize(
                model=objective, optimizer=optimizer, config=self.settings
            )
        self.objective, self.corrections = objective, getattr(objective, "corrections", list)
        if self.splits_weights:
            for parameter in _read_directly(objective):
                self.deepspeed.zero.register_external_parameter(objective, parameter)

    def forward(self, inputs: dict[str, Any]) -> tuple[Tensor, Metrics]:
        """The objective's loss and metrics."""
        return self.engine(**inputs)

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """A block whose gradients are only added up; DeepSpeed counts the calls of `step` to know."""
        yield
        self.engine.step()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of `loss`, which the loop has divided by the number of passes."""
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, *, learning_rate: float, clip: float) -> float | None:
        """Changes the weights and forgets the gradients; the gradient's norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if self.clip is not None:
            norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.clip or float("inf"))
        self.engine.step()
        self._correct()
        return float((self.engine.get_global_grad_norm() if norm is None else norm) or 0.0)

    @torch.no_grad()
    def _correct(self) -> None:
        """Carries corrections out where DeepSpeed takes the next step from: in its own copy of the weights too."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        for parameter, change in self.corrections():
            value = change(self._whole(parameter))
            with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.splits_weights):
                parameter.copy_(value)
            if self.splits_weights:
                safe_set_local_fp32_param(parameter, parameter.ds_tensor)  # type: ignore[attr-defined]
            else:
                safe_set_full_fp32_param(parameter, value)

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The numbers of parameters and buffers, put together; all processes call it."""
        return {name: self._whole(tensor) for name, tensor in tensors.items()}

    def _whole(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            return tensor.detach()
        with self.deepspeed.zero.GatheredParameters([tensor], enabled=self.splits_weights):
            whole = _master(tensor)
        return whole.reshape(()) if id(tensor) in self.scalars else whole

    def save(self, folder: Path) -> None:
        """Writes each process's share of the optimizer's state, and how many there are."""
        self.engine.save_checkpoint(str(folder), tag=SHARDS, exclude_frozen_parameters=True)
        if self.rank == 0:
            (folder / MANIFEST).write_text(json.dumps({"stage": self.stage, "world": self.world}) + "\n")

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, where as many processes did under the same stage; of stage 0, however many."""
        here = {"stage": self.stage, "world": self.world}
        path = folder / MANIFEST
        found = json.loads(path.read_text()) if path.is_file() else None
        if found == here or (found and found["stage"] == self.stage == 0):
            # frozen weights are left out of the shards: they are where the run took them from
            self.engine.load_checkpoint(str(folder), tag=SHARDS, load_module_strict=False)
        elif self.rank == 0:
            before = f"is of stage {found['stage']} on {found['world']} processes" if found else "is not DeepSpeed's"
            now = f"stage {self.stage} on {self.world}"
            warn(f"the optimizer's state in {folder} {before} and cannot be used for {now}: {NEW_MOMENTS}")

    def adopt(self, moments: Moments) -> None:
        """Says that another program's optimizer state is not taken over."""
        if self.rank == 0 and moments:
            warn(f"DeepSpeed divides the optimizer's state and takes over none: {NEW_MOMENTS}")


def _import() -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning)  # hundreds, of what DeepSpeed calls in torch
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise DependencyError(f"--deepspeed needs deepspeed ({error}); pip install 'dalle3[deepspeed]'") from None
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # it would be compiled at the first start, 84 s, and serves inference alone
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _meet_alone(device: torch.device) -> None:
    """Makes a group of this process, which no launcher started."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)


@contextmanager
def _sendable(scalars: list[nn.Parameter], *, splits_weights: bool) -> Iterator[None]:
    """Lets DeepSpeed start with scalar weights, which it sends round as bytes that torch cannot make of them.

    Where it divides weights, they get a dimension for good. Elsewhere they stay scalars, and are kept back by the mark
    that DeepSpeed's own layers bear; they are the same in all processes anyway.
    """
    for scalar in scalars:
        if splits_weights:
            scalar.data = scalar.data[None]
        else:
            scalar.ds_optim_param = True  # type: ignore[attr-defined]
    yield
    for scalar in scalars:
        if not splits_weights:
            del scalar.ds_optim_param  # type: ignore[attr-defined]


def _read_directly(objective: nn.Module) -> Iterator[nn.Parameter]:
    """A model's own weights and those of the leaves right below it, which it reads without calling them.

    Left to itself, DeepSpeed finds such weights during the first pass, and at times then stops at the second with a
    "tracing error", as it fetches other weights than the first time.
    """
    for model in objective.children():
        yield from model.parameters(recurse=False)
        for leaf in model.children():
            if not any(True for _ in leaf.children()):
                yield from leaf.parameters()


def _master(parameter: nn.Parameter) -> Tensor:
    """A copy of a parameter, of the float32 one behind it where there is one."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = safe_get_full_fp32_param(parameter) if parameter.dtype != torch.float32 else None
    return (parameter.detach() if whole is None else whole).float().clone()


def _object(path: Path) -> dict[str, Any]:
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--deepspeed_config {path} cannot be read as JSON ({error})") from None
    if not isinstance(theirs, dict):
        raise ConfigError(f"--deepspeed_config {path} holds no JSON object; expected DeepSpeed's settings")
    if not isinstance(zero := theirs.get("zero_optimization", {}), dict):
        raise ConfigError(f'{path}: zero_optimization {zero} is no JSON object; expected one like {{"stage": 2}}')
    return theirs


def _read(path: Path, ours: dict[str, Any]) -> dict[str, Any]:
    theirs = _object(path)
    if "optimizer" in theirs or "scheduler" in theirs:
        raise ConfigError(f"{path} names an optimizer or a scheduler; give those by --optimizer and --lr_schedule")
    for name in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if theirs.get(name, ours[name]) not in (ours[name], "auto"):
            flag = "--ga_steps" if name.startswith("gradient") else "--batch_size"
            raise ConfigError(f"{path} has {name} {theirs[name]} and {flag} is {ours[name]}; make them the same")
    return {name: value for name, value in theirs.items() if value != "auto" and name != "train_batch_size"}
