"""Views of the fp32 parameter elements that a rank holds, in any ZeRO stage, to save and load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flava_ds.errors import CheckpointError
from flava_ds.optimizers.base import Place, Places
from flava_ds.training import deepspeed_fixes

if TYPE_CHECKING:
    from flava_ds.training.engine import Engine


@dataclass(frozen=True)
class Fragment:
    """Elements `start` .. `start` + `numel` of a flattened parameter.

    `tensors` holds flat views of this rank's memory: 'weight' and, for a trained parameter, the optimizer's
    moments and the running averages that follow it. If `replicated`, every rank holds the same elements.
    """

    name: str
    start: int
    tensors: dict[str, Tensor]
    replicated: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.tensors["weight"].numel()

    def narrow(self, start: int, numel: int) -> Fragment:
        """Returns `numel` elements of the fragment, starting at its element `start`."""
        return Fragment(
            self.name,
            self.start + start,
            {key: tensor.narrow(0, start, numel) for key, tensor in self.tensors.items()},
            self.replicated,
        )


@dataclass(frozen=True)
class _Piece:
    """Maps `numel` elements of a parameter, from `start`, to a flat optimizer tensor, from `offset`."""

    parameter: nn.Parameter
    start: int
    offset: int
    numel: int


@dataclass(frozen=True)
class _Slot:
    """One optimizer tensor: its group, the parameters in it on all ranks, and this rank's pieces of them."""

    flat: Tensor
    group: dict[str, Any]
    members: list[nn.Parameter]
    pieces: list[_Piece]


@dataclass
class Average:
    """A running average of some parameters, in fp32, sharded like the fp32 weights and in the same memory."""

    followed: set[str]
    """Names of these parameters, all of them trained."""
    _flats: dict[int, Tensor] = field(default_factory=dict)

    def like(self, number: int, flat: Tensor) -> Tensor:
        """Returns its counterpart of the optimizer's tensor `number`, initialised from that tensor."""
        if number not in self._flats:
            self._flats[number] = flat.detach().to(torch.float32, copy=True).view(-1)
        return self._flats[number]


def left_out(engine: Engine) -> set[str]:
    """Names what the optimizer keeps for each element beside its `moments`, which no fragment holds."""
    kept = {"step", *engine.optimizer.moments}
    return {
        key
        for slot in _slots(engine)
        for key, own in engine.optimizer.state.get(slot.flat, {}).items()
        if key not in kept and isinstance(own, Tensor) and 1 < own.numel() == slot.flat.numel()
    }


def held(engine: Engine) -> Iterator[Fragment]:
    """Yields the fragments that this rank needs; every parameter is on some rank."""
    names, replicated = _names(engine), engine.stage == 0
    for number, slot in enumerate(_slots(engine)):
        state = engine.optimizer.create_state(slot.flat)
        flats = {
            "weight": slot.flat.detach().view(-1),
            **{key: state[key].view(-1) for key in engine.optimizer.moments},
        }
        members = {names[member] for member in slot.members}
        averages = {key: average for key, average in engine.averages.items() if average.followed & members}
        flats |= {key: average.like(number, slot.flat) for key, average in averages.items()}
        for piece in slot.pieces:
            name = names[piece.parameter]
            own = {
                key: flat
                for key, flat in flats.items()
                if key not in averages or name in averages[key].followed
            }
            tensors = {key: flat.narrow(0, piece.offset, piece.numel) for key, flat in own.items()}
            yield Fragment(name, piece.start, tensors, replicated)
    for parameter, name in names.items():
        if not parameter.requires_grad:
            start, flat = _frozen(engine, parameter)
            flat = engine.untrained.get(name, flat)
            if flat.numel():
                yield Fragment(name, start, {"weight": flat}, replicated=engine.stage < 3)


def owned(engine: Engine) -> Iterator[Fragment]:
    """Yields the fragments that this rank saves: those it alone holds and its share of replicated ones."""
    size, rank = engine.world.size, engine.world.rank
    for fragment in held(engine):
        if not fragment.replicated:
            yield fragment
            continue
        share = -(-fragment.numel // size)
        start = min(rank * share, fragment.numel)
        if numel := min(share, fragment.numel - start):
            yield fragment.narrow(start, numel)


def gradients(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Yields, by parameter, views of the averaged gradients that this rank will apply: its part of each, or
    without ZeRO the whole. To be called between the last backward pass and the optimizer's step.
    """
    names = _names(engine)
    if engine.stage == 0:
        yield from ((names[p], p.grad) for p in names if p.requires_grad and p.grad is not None)
        return
    entries = deepspeed_fixes.local_gradients(engine.deepspeed)
    for slot, (_, tensors, _) in zip(_slots(engine), entries, strict=True):
        begin, rest = 0, list(slot.pieces)
        for tensor in tensors:
            end = begin + tensor.numel()
            for piece in rest:
                first, last = max(begin, piece.offset), min(end, piece.offset + piece.numel)
                if first < last:
                    yield names[piece.parameter], tensor.view(-1)[first - begin : last - begin]
            rest = [piece for piece in rest if piece.offset + piece.numel > end]
            begin = end


def update_counts(engine: Engine) -> dict[str, int]:
    """Returns the number of optimizer updates of each trained parameter."""
    names = _names(engine)
    return {
        names[member]: engine.optimizer.updates_of(slot.group, slot.flat)
        for slot in _slots(engine)
        for member in slot.members
    }


def set_update_counts(engine: Engine, counts: Mapping[str, int]) -> None:
    """Sets the number of updates of each trained parameter.

    Raises: CheckpointError if a count is missing, or if parameters that now share a count have different
    ones.
    """
    names = _names(engine)
    for slot in _slots(engine):
        members = [names[member] for member in slot.members]
        if missing := [name for name in members if name not in counts]:
            raise CheckpointError(
                f"the checkpoint has no optimizer state of '{missing[0]}', which this run trains; freeze the "
                "same parameters as before, or start a new run with --initial-weights"
            )
        first = members[0]
        if other := next((name for name in members if counts[name] != counts[first]), None):
            raise CheckpointError(
                f"'{first}' has had {counts[first]} updates and '{other}' {counts[other]}, but this "
                "configuration trains them as one group; resume with the objectives and optimizer settings "
                "of the checkpoint's config.json, or start a new run with --initial-weights"
            )
        engine.optimizer.set_updates(slot.group, slot.flat, int(counts[first]))


def places(engine: Engine) -> dict[int, Places]:
    """Returns what each of the optimizer's tensors holds on this rank, by the tensor's id."""
    found = {}
    for slot in _slots(engine):
        numbers = {member: number for number, member in enumerate(slot.members)}
        own = (Place(numbers[piece.parameter], piece.offset, piece.numel) for piece in slot.pieces)
        found[id(slot.flat)] = Places(len(slot.members), tuple(own))
    return found


def exact_weights(module: nn.Module) -> dict[str, Tensor]:
    """Returns a module's parameters in host memory, by name: [...] fp32."""
    return {name: own.detach().cpu() for name, own in module.named_parameters()}


def start_from(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Copies whole weights to the optimizer's tensors, and keeps this rank's part of those that are frozen;
    none changes nothing.

    DeepSpeed makes those of the module's parameters after it has rounded these to half precision. A run
    would then start from other weights than the same one in fp32, or than those that it was given, and save
    other frozen ones.
    """
    names = _names(engine)
    for parameter, name in names.items() if weights else ():
        if not parameter.requires_grad:
            start, flat = _frozen(engine, parameter)
            engine.untrained[name] = weights[name].view(-1).narrow(0, start, flat.numel()).clone()
    for slot in _slots(engine) if weights else ():
        flat = slot.flat.detach().view(-1)
        for piece in slot.pieces:
            whole = weights[names[piece.parameter]].view(-1)
            flat.narrow(0, piece.offset, piece.numel).copy_(whole.narrow(0, piece.start, piece.numel))


def begin_loading(engine: Engine) -> None:
    """Prepares the fragments for new values. Collective: all ranks call it together."""
    if engine.stage == 3:
        engine.deepspeed.optimizer._partition_all_parameters()


def finish_loading(engine: Engine) -> None:
    """Copies the fragments' new values to the parameters that the module computes with. Collective."""
    zero = engine.deepspeed.optimizer
    for parameter, name in _names(engine).items() if engine.untrained else ():
        if name in engine.untrained:
            _frozen(engine, parameter)[1].copy_(engine.untrained[name])
    if engine.stage in (1, 2):
        zero.update_lp_params()
        for group in range(len(zero.bit16_groups)):
            zero._update_model_bit16_weights(group)
    elif engine.stage == 3:
        for sub_group in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(sub_group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        zero.invalidate_secondary_tensor()


def _names(engine: Engine) -> dict[nn.Parameter, str]:
    return {parameter: name for name, parameter in engine.module.named_parameters()}


def _slots(engine: Engine) -> Iterator[_Slot]:
    """Yields the optimizer's tensors.

    Stages 1 and 2 have one per group, stage 3 one per sub-group with a part of each parameter on every rank;
    without ZeRO they are the parameters themselves.
    """
    zero, groups = engine.deepspeed.optimizer, engine.optimizer.param_groups
    if engine.stage == 0:
        for group in groups:
            for parameter in group["params"]:
                yield _Slot(parameter, group, [parameter], [_Piece(parameter, 0, 0, parameter.numel())])
    elif engine.stage == 3:
        for number, members in enumerate(zero.fp16_groups):
            yield _Slot(
                zero.fp32_partitioned_groups_flat[number],
                groups[zero.sub_group_to_group_id[number]],
                members,
                _partitions(engine, members),
            )
    else:
        for number, (group, members) in enumerate(zip(groups, zero.bit16_groups, strict=True)):
            mapped = [(member, member._hp_mapping) for member in members if member._hp_mapping is not None]
            pieces = [
                _Piece(
                    p, m.lp_fragment_address.start, m.hp_fragment_address.start, m.hp_fragment_address.numel
                )
                for p, m in mapped
            ]
            yield _Slot(zero.single_partition_of_fp32_groups[number], group, members, pieces)


def _partitions(engine: Engine, members: list[Any]) -> list[_Piece]:
    """Lists this rank's equal parts of a ZeRO-3 sub-group's parameters; the last parts may be padding."""
    pieces, offset = [], 0
    for parameter in members:
        part = parameter.partition_numel()
        start = engine.world.rank * part
        if start < parameter.ds_numel:
            pieces.append(_Piece(parameter, start, offset, min(part, parameter.ds_numel - start)))
        offset += part
    return pieces


def _frozen(engine: Engine, parameter: Any) -> tuple[int, Tensor]:
    """Returns this rank's part of a frozen parameter, in the module's precision, and where it starts."""
    if engine.stage < 3:
        return 0, parameter.detach().view(-1)
    part = parameter.partition_numel()
    start = min(engine.world.rank * part, parameter.ds_numel)
    return start, parameter.ds_tensor.detach().view(-1).narrow(0, 0, min(part, parameter.ds_numel - start))
