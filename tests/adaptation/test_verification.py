"""Practice verified without gold: what fails is rejected, what agrees weighs by its share, costs are counted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mass.adaptation import synthesis
from mass.adaptation.adapt import practise
from mass.adaptation.batch import trust_of
from mass.adaptation.checkpoint import adapt_config, init_state
from mass.adaptation.scoring import normalise, score
from mass.adaptation.synthesis.reasons import rejected_shares
from mass.adaptation.synthesis.verification import verified
from mass.config import AdaptConfig, SamplingConfig, ScoringConfig, SynthesisConfig, VerifyConfig, to_dict
from mass.errors import ConfigError
from mass.lm import LM
from mass.lm.prompts import CODE
from mass.types import Adaptation, Example, Sample
from small_lms import make_lm

SHORT = SamplingConfig(max_new_tokens=16, temperature=1.0)
CONFIG = SynthesisConfig(examples=3, sampling=SHORT, verify=VerifyConfig(enabled=True, solutions=4, sampling=SHORT))


def answers(lm: LM, monkeypatch: pytest.MonkeyPatch, *texts: str) -> list[dict[str, Any]]:
    """Let the model give these texts, one after the other, and return what it was asked."""
    asked: list[dict[str, Any]] = []

    def sample(prompts: Sequence[Sequence[int]], config: SamplingConfig, seeds: Sequence[int], adapter: Any) -> Any:
        asked.append({"prompts": prompts, "config": config, "seeds": list(seeds), "adapter": adapter})
        return [Sample((5, 6, 7), texts[i], not texts[i].startswith("unfinished")) for i in range(len(prompts))]

    monkeypatch.setattr(lm, "sample", sample)
    return asked


def one(lm: LM, example: Example, config: SynthesisConfig = CONFIG) -> Example:
    ((found,),) = verified(lm, [(example,)], config, [3], None)
    return found


def test_what_agrees_is_learned_with_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    asked = answers(lm, monkeypatch, "Answer: 5", "Answer: 5", "Answer: 6", "unfinished, Answer: 5")
    found = one(lm, Example("2 + 3?", "It is 5. Answer: 5", tokens=(1, 2)))
    assert (found.valid, found.agreement, found.resolved, found.solution) == (True, 0.6, False, "It is 5. Answer: 5")
    assert found.verification_tokens == 12
    assert found.note == "3 of 5 solutions agree"
    assert asked[0]["prompts"] == [lm.solve_prompt("2 + 3?")] * 4
    assert asked[0]["config"] == SHORT
    assert len(set(asked[0]["seeds"])) == 4


def test_a_wrong_written_solution_is_replaced_by_the_majority_s(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    answers(lm, monkeypatch, "Answer: 5", "So Answer: 5", "Answer: 5.0", "Answer: 9")
    found = one(lm, Example("2 + 3?", "Answer: 6", text="written", tokens=(1, 2)))
    assert (found.valid, found.agreement, found.resolved, found.solution) == (True, 0.6, True, "Answer: 5")
    assert (found.text, found.tokens) == ("written", (1, 2))


def test_where_too_few_agree_the_example_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    answers(lm, monkeypatch, "Answer: 5", "Answer: 7", "nothing", "Answer: 8")
    found = one(lm, Example("2 + 3?", "Answer: 5"))
    assert (found.rejected, found.agreement) == ("no agreement", 0.4)
    lenient = dataclasses.replace(CONFIG, verify=dataclasses.replace(CONFIG.verify, least_share=0.4))
    assert one(lm, Example("2 + 3?", "Answer: 5"), lenient).valid
    answers(lm, monkeypatch, *["unfinished"] * 4)
    assert one(lm, Example("2 + 3?", "nothing")).rejected == "no agreement"


def test_rejected_examples_and_attempts_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    asked = answers(lm, monkeypatch)
    group = (Example("x", "y", rejected="copy"), Example("2 + 3?", "Answer: 5", attempt=True))
    assert verified(lm, [group], CONFIG, [0], None) == [group]
    assert asked == []


def test_a_solution_of_another_length_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    answers(lm, monkeypatch, *["Answer: 5" + " and so on" * 20] * 4)
    short = dataclasses.replace(CONFIG, max_example_tokens=lm.example_tokens("2 + 3?", "Answer: 5") + 4)
    assert one(lm, Example("2 + 3?", "Answer: 6"), short).rejected == "too long"


def test_programs_are_run_against_their_own_tests() -> None:
    lm = make_lm(chat=True).asking(CODE)
    code = "```python\ndef double(x):\n    return 2 * x\n```"
    group = (
        Example("Write double.\nassert double(2) == 4\nassert double(3) == 6", code),
        Example("Write double.\nassert double(2) == 5", code),
        Example("Write double.", code),
    )
    (found,) = verified(lm, [group], CONFIG, [0], None)
    assert [e.rejected.partition(":")[0] for e in found] == ["", "failed its tests", "without tests"]
    assert found[0].note == "passed its 2 tests"
    assert "AssertionError" in found[1].rejected
    assert [e.verification_tokens for e in found] == [0, 0, 0]
    shares = rejected_shares(found)
    assert shares == {"failed its tests": pytest.approx(1 / 3), "without tests": pytest.approx(1 / 3)}


def test_shares_multiply_weights_which_sum_to_one_again() -> None:
    groups = [(Example("a", "1", agreement=0.6), Example("b", "2"), Example("c", "3", rejected="copy", agreement=0.2))]
    scores, valid = torch.tensor([[0.3, 0.3, 9.0]]), torch.tensor([[True, True, False]])
    trust = trust_of(groups, VerifyConfig(enabled=True), scores)
    for kind in ("softmax", "uniform"):
        torch.testing.assert_close(normalise(scores, valid, kind, trust), torch.tensor([[0.375, 0.625, 0.0]]))
    half = torch.sigmoid(torch.tensor(0.3)) / 3
    torch.testing.assert_close(normalise(scores, valid, "sigmoid", trust), torch.tensor([[0.6, 1.0, 0.0]]) * half)
    assert trust_of(groups, VerifyConfig(enabled=True, by_share=False), scores) is None
    assert trust_of([(Example("b", "2"),)], VerifyConfig(enabled=True), scores) is None


def test_the_scorer_can_see_the_share_and_reads_the_solution_that_is_learned() -> None:
    lm = make_lm()
    for likelihood in (True, False):
        config = AdaptConfig(scoring=ScoringConfig(agreement=True, likelihood=likelihood))
        eta = {n: t + 0.1 for n, t in init_state(lm, config, 0).eta.items()}
        written = Example("2 + 3?", "Answer: 5", tokens=tuple(lm.written_ids("2 + 3?", "Answer: 6")))
        shares = [dataclasses.replace(written, agreement=share) for share in (0.5, 1.0, None)]
        low, high, unknown = score(lm, eta, ["x"] * 3, shares).tolist()
        assert low != pytest.approx(high)
        assert unknown == pytest.approx(high)
    resolved = dataclasses.replace(written, resolved=True)
    right = dataclasses.replace(written, tokens=tuple(lm.written_ids("2 + 3?", "Answer: 5")))
    first, second, third = score(lm, eta, ["x"] * 3, [resolved, right, written]).tolist()
    assert first == pytest.approx(second)
    assert first != pytest.approx(third)


def test_records_have_stage_and_tokens_and_replay_without_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = make_lm()
    config = AdaptConfig(CONFIG, ScoringConfig(normalise="uniform"))
    state = init_state(lm, config, 0)
    example = Example("2 + 3?", "Answer: 5", tokens=(1, 2, 3))
    monkeypatch.setattr(
        synthesis, "synthesise", lambda *_, **__: [(example, dataclasses.replace(example, solution="6"))]
    )
    answers(lm, monkeypatch, *["Answer: 5"] * 8)
    (record,), _ = practise(lm, state, ["1 + 1?"], config, [0])
    assert record.tokens == {"synthesis": 6, "verification": 24}
    assert "verification" in record.seconds
    assert [e.agreement for e in record.examples] == [1.0, 0.8]
    assert record.examples[1].resolved
    assert record.examples[0].weight == pytest.approx(1 / 1.8)
    again = Adaptation.from_dict(json.loads(json.dumps(record.to_dict())))
    (replayed,), _ = practise(lm, state, ["1 + 1?"], adapt_config(again.config), [0], replay=[again.examples])
    assert replayed.adapter_hash == record.adapter_hash
    off = dataclasses.replace(config, synthesis=dataclasses.replace(CONFIG, verify=VerifyConfig()))
    (plain,), _ = practise(lm, state, ["1 + 1?"], off, [0])
    assert plain.tokens == {"synthesis": 6}
    assert "verification" not in plain.seconds


def test_settings_are_checked_and_written_configurations_read_back() -> None:
    config = AdaptConfig(CONFIG)
    assert adapt_config(to_dict(config)) == config
    old = to_dict(AdaptConfig())
    del old["synthesis"]["verify"]
    assert adapt_config(old) == AdaptConfig()
    with pytest.raises(ConfigError, match=r"verify\.least_share is 1\.5; expected a share"):
        VerifyConfig(least_share=1.5)
    with pytest.raises(ConfigError, match=r"verify\.solutions is 0"):
        VerifyConfig(solutions=0)
