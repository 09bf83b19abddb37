"""The bound on what a pass holds, against what it holds; and that nothing changes where all fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mass.errors import ConfigError
from mass.lm import LM, free_memory, room
from mass.metagrad import SGD, adapt, memory
from mass.metagrad.memory import Schedule
from mass.types import Params
from peak import Peak
from small_lms import ARCHITECTURES, make_lm, random_adapter

WIDE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "head_dim": 32}


def model(kind: str, attention: str | None) -> LM:
    sizes = {} if kind == "GPT2" else WIDE
    if kind in ("Gemma2", "Gemma3"):
        sizes = {**sizes, "layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    longest = "n_positions" if kind == "GPT2" else "max_position_embeddings"
    return make_lm(kind, torch.float32, attn_implementation=attention, **{longest: 1024, **sizes})


@pytest.mark.parametrize("rows", [(4, 20), (2, 120), (1, 600)], ids=str)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_bound_holds_and_is_no_more_than_six_times(kind: str, rows: tuple[int, int]) -> None:
    for attention in ("eager",) if kind == "Gemma2" else ("eager", "sdpa"):
        lm, (count, length) = model(kind, attention), rows
        batch = lm.batch([([5] * (length // 2), [7] * (length - length // 2))] * count)
        params = {name: t.requires_grad_() for name, t in random_adapter(lm).items()}
        with Peak() as forward, torch.no_grad():
            lm.losses(batch, params)
        with Peak() as first:
            torch.autograd.grad(lm.losses(batch, params).sum(), list(params.values()))
        with Peak() as second:
            grads = torch.autograd.grad(lm.losses(batch, params).sum(), list(params.values()), create_graph=True)
            used = [g for g in grads if g.requires_grad]
            torch.autograd.grad(used, list(params.values()), [torch.ones_like(g) for g in used], allow_unused=True)
        for what, seen in (("forward", forward), ("gradient", first), ("second order", second)):
            bound = room.bytes_of(lm, count, length, what)  # type: ignore[arg-type]
            assert seen.peak <= bound, (what, attention)
            assert what == "forward" or bound < 6 * seen.peak, (what, attention)


def free(monkeypatch: pytest.MonkeyPatch, spare: float) -> None:
    monkeypatch.setattr(free_memory, "free_bytes", lambda _: spare / free_memory.SHARE)


def test_rows_and_stacks_are_cut_to_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model("Llama", "sdpa")
    whole, one = (room.bytes_of(lm, n, 100, "gradient") for n in (8, 1))
    free(monkeypatch, whole)
    assert room.rows_that_fit(lm, 8, 100, "gradient") == 8
    free(monkeypatch, whole - 1)
    assert room.rows_that_fit(lm, 8, 100, "gradient") == 7
    free(monkeypatch, one / 2)
    assert room.rows_that_fit(lm, 8, 100, "gradient") == 1
    adapter = sum(p.numel() * p.element_size() for p in lm.init_adapter(0).values())
    for spare, stack, expected in ((32.1, 32, 32), (31.9, 32, 16), (5, 12, 4), (0.1, 7, 1), (6.9, 7, 1)):
        free(monkeypatch, spare * room.ADAPTERS * adapter)
        assert room.stack_that_fits(lm, stack) == expected


# ------------------------------------------------------------------------------- the inner loop

EXAMPLES = 6


def adapted(lm: LM, seen: list[Schedule], spare_gb: float | None, micro_batch: int | None = None) -> dict[str, Tensor]:
    batch = lm.batch([([1 + i] * 20, [7] * 40) for i in range(EXAMPLES)])
    start = {name: t.requires_grad_() for name, t in random_adapter(lm, scale=0.1).items()}
    weights = torch.full((EXAMPLES,), 1 / EXAMPLES, requires_grad=True)

    def losses(params: Params, index: Tensor | None) -> Tensor:
        return lm.losses(batch.select(index), params)

    seen.clear()
    with Peak() as peak:
        found = adapt(losses, start, weights, SGD(0.1), 2, micro_batch, spare_gb=spare_gb)
        grads = torch.autograd.grad(sum(p.sum() for p in found.values()), [weights, *start.values()])
    return {"peak": torch.tensor(peak.peak), "weights": grads[0], "theta": grads[1], **found}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Schedule]:
    chosen, right = list[Schedule](), memory.choose
    monkeypatch.setattr(memory, "choose", lambda *given: chosen.append(right(*given)) or chosen[-1])
    return chosen


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_what_can_be_spared_changes_nothing_where_it_is_enough(seen: list[Schedule], micro_batch: int | None) -> None:
    lm = model("Llama", "sdpa")
    plain = adapted(lm, seen, None, micro_batch)
    schedule = seen[0]
    for spare in (1.0, 1e6, float("inf")):
        found = adapted(lm, seen, spare, micro_batch)
        assert all(torch.equal(found[name], plain[name]) for name in plain if name != "peak")
        assert [chunk if chunk is None else chunk.tolist() for chunk in seen[0].chunks] == [
            chunk if chunk is None else chunk.tolist() for chunk in schedule.chunks
        ]


def test_it_is_kept_where_it_is_not_enough(seen: list[Schedule]) -> None:
    lm = model("Llama", "sdpa")
    plain = adapted(lm, seen, None)
    for share in (0.7, 0.4, 0.2):
        spare = share * float(plain["peak"])
        found = adapted(lm, seen, spare / 1e9)
        assert float(found["peak"]) <= spare
        assert len(seen[0].chunks) > 1
        assert seen[0].kept == 0
        for name in ("weights", "theta"):
            torch.testing.assert_close(found[name], plain[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spare", [0.0, 1e-6])
def test_what_cannot_fit_is_said_in_one_line(seen: list[Schedule], spare: float) -> None:
    with pytest.raises(ConfigError, match=r"can be spared for the inner loop, but one example and the tape need") as e:
        adapted(model("Llama", "sdpa"), seen, spare)
    assert "\n" not in str(e.value)


def test_practice_asks_for_a_measure_only_where_the_bound_does_not_settle_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model("Llama", "sdpa")
    bound = room.bytes_of(lm, EXAMPLES, 60, "second order")
    free(monkeypatch, bound)
    assert room.spare_gb(lm, EXAMPLES, 60) is None
    free(monkeypatch, bound - 1)
    assert room.spare_gb(lm, EXAMPLES, 60) == pytest.approx(bound / 1e9)
