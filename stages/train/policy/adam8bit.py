"""AdamW whose two moments take one byte a weight each. Weights stay float32.

Each row of a weight is cut into blocks, and a number is kept as an eight-bit float times its block's scale (Dettmers et
al., 2110.02861, look their levels up; ours are computed). A block lies in one row, and FSDP shards rows: so codes are
those of the whole weight whoever has them, and checkpoints reshard them as they do weights.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard

BLOCK = 256  # numbers of a row that share a scale, at most
_FEWEST = 16  # a row that has no even blocks of so many keeps float32
_AT_ONCE = 2**18  # numbers that are float32 at a time: they stay in a core's cache


class AdamW8bit(torch.optim.Optimizer):
    """As torch.optim.AdamW, but for the rounding of its moments.

    What is kept of the second one is its root, by which the step is divided: so it reaches over twelve decades, and a
    small gradient beside a large one is not rounded to none. Biases and norms, and what is not sharded by rows, have
    moments in float32.
    """

    def __init__(
        self,
        weights: Iterable[torch.Tensor],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ):
        super().__init__(weights, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # noqa: ARG002
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, weight.grad, self.state[weight] or self._begun(weight), group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Torch's own makes floats of all that belongs to a float weight."""
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for name, weight in zip(names, weights, strict=True):
            if name in state_dict["state"]:
                self.state[weight] = dict(state_dict["state"][name])
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group |= {key: value for key, value in saved.items() if key != "params"}

    def _begun(self, weight: torch.Tensor) -> dict[str, Any]:
        state: dict[str, Any] = {"step": torch.tensor(0.0)}
        if block := _block(weight):
            for name in ("mean", "root"):
                state[f"{name}_codes"] = _like(weight, weight.shape[-1], torch.uint8)
                state[f"{name}_scales"] = _like(weight, weight.shape[-1] // block, torch.float32)
        else:
            state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
        self.state[weight] = state
        return state

    def _step(self, weight: torch.Tensor, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        state["step"] += 1
        step = int(state["step"])
        parts = {name: _local(each) for name, each in state.items() if name != "step"}
        values, gradient = _local(weight), _local(grad)
        if "mean" in parts:
            _adamw(values, gradient, parts["mean"], parts["square"], step, group)
            return
        width = weight.shape[-1]
        rows = [each.view(-1, each.shape[-1]) for each in (values, gradient, *parts.values())]
        for piece in _pieces(len(rows[0]), max(1, _AT_ONCE // width)):
            value, slope, mean_codes, mean_scales, root_codes, root_scales = (each[piece] for each in rows)
            mean = decoded(mean_codes, mean_scales, signed=True)
            square = decoded(root_codes, root_scales, signed=False).square_()
            _adamw(value, slope, mean, square, step, group)
            encode(mean, mean_codes, mean_scales, step, signed=True)
            encode(square.sqrt_(), root_codes, root_scales, step, signed=False)


def _adamw(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: int,
    group: dict[str, Any],
) -> None:
    """Loshchilov & Hutter (1711.05101), algorithm 2; all in place, in torch's order."""
    first, second = group["betas"]
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    divisor = square.sqrt().div_((1 - second**step) ** 0.5).add_(group["eps"])
    weight.addcdiv_(mean, divisor, value=-group["lr"] / (1 - first**step))


def encode(values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, step: int, signed: bool) -> None:
    """values [R, K] float32 -> codes [R, K] uint8 and scales [R, blocks] float32, written into these.

    A code is the upper bits of a float32: four of its exponent, and of its mantissa four, or three and the sign. _LEAST
    is added before, so that zero has a code, and levels near it are even.

    Between two levels it is the column and the step that say which way to round, each in its share of the steps: always
    to the nearest would stop a mean that moves by less than half a level a step, as the second moment does.
    """
    shift, most = (20, 127) if signed else (19, 255)
    top = torch.tensor(_BITS + (most << shift), dtype=torch.int32).view(torch.float32).item() - _LEAST
    blocks = values.unflatten(1, (scales.shape[1], -1))
    torch.amax(blocks.abs(), 2, out=scales)
    scales.div_(top)
    scaled = blocks.abs().div_(scales.clamp(min=torch.finfo(torch.float32).tiny)[:, :, None]).flatten(1)
    bits = scaled.add_(_LEAST).view(torch.int32)
    bits.add_(_turns(values.shape[1], step, shift, values.device)).sub_(_BITS).bitwise_right_shift_(shift)
    bits.clamp_(max=most)
    if signed:
        bits.add_((values < 0).int(), alpha=128)
    codes.copy_(bits)


def decoded(codes: torch.Tensor, scales: torch.Tensor, signed: bool) -> torch.Tensor:
    """Codes [R, K] uint8 and scales [R, blocks] -> [R, K] float32."""
    bits = codes.int()
    if signed:
        bits.bitwise_and_(127)
    values = bits.bitwise_left_shift_(20 if signed else 19).add_(_BITS).view(torch.float32).sub_(_LEAST)
    values.unflatten(1, (scales.shape[1], -1)).mul_(scales[:, :, None])
    return torch.where(codes > 127, -values, values) if signed else values


_LEAST = 2.0**-16
_BITS = (127 - 16) << 23  # of it as a float32


def _turns(columns: int, step: int, shift: int, device: torch.device) -> torch.Tensor:
    """[columns] int32 from 0 to a level's width: evenly spread over columns and steps (M. Roberts' sequence R2)."""
    spread = torch.arange(columns, dtype=torch.float64, device=device) * 0.7548776662466927
    return (spread + step * 0.5698402909980532).remainder(1).mul(2**shift).int()


def _block(weight: torch.Tensor) -> int:
    """How many numbers of a row share a scale: equally many everywhere. 0: its moments stay float32."""
    placements = weight.placements if isinstance(weight, DTensor) else ()
    if weight.ndim < 2 or any(each.dim != 0 for each in placements if isinstance(each, Shard)):
        return 0
    width = weight.shape[-1]
    block = next(size for size in range(min(BLOCK, width), 0, -1) if width % size == 0)
    return block if block >= min(_FEWEST, width) else 0


def _like(weight: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros, sharded as `weight`, with rows of another width."""
    local = _local(weight)
    made = torch.zeros((*local.shape[:-1], width), dtype=dtype, device=local.device)
    if not isinstance(weight, DTensor):
        return made
    whole = torch.empty((*weight.shape[:-1], width), device="meta")
    return DTensor.from_local(
        made, weight.device_mesh, weight.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's rows: the memory itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _pieces(rows: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, rows, size))
