"The stream layouts: exact inverses, AudioCraft's reference, causality, errors."
import json
from pathlib import Path

import pytest
import torch

from audiogen_nb.lm.streams import DelayPattern, FlattenPattern, ParallelPattern, StreamPattern, get_pattern

REFERENCE = json.loads((Path(__file__).parent / "data" / "pattern.json").read_text())
KINDS = [ParallelPattern, DelayPattern, FlattenPattern]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 4, 1), (3, 1, 9), (2, 4, 7), (1, 8, 3)])
def test_revert_is_the_inverse_of_build(kind, shape):
    pattern, codes = kind(shape[1]), torch.randint(50, shape)
    sequence = pattern.build(codes, 50)
    assert sequence.shape == (shape[0], shape[1], pattern.n_steps(shape[2])) and sequence.dtype == torch.int64
    assert (sequence[..., 0] == 50).all()
    assert torch.equal(pattern.revert(sequence), codes) and torch.equal(pattern.revert(sequence, 50), codes)
    assert torch.equal(pattern.valid(shape[2]), (sequence != 50)[0])
    assert pattern.n_frames(sequence.shape[2]) == shape[2]


def test_delay_agrees_with_audiocraft():
    pattern, frames = DelayPattern(REFERENCE["n_q"]), REFERENCE["timesteps"]
    codes = torch.tensor(REFERENCE["input_codes"])[None]
    sequence = pattern.build(codes, REFERENCE["special_token"])
    assert sequence[0].tolist() == REFERENCE["sequence"]
    assert pattern.valid(frames).int().tolist() == REFERENCE["sequence_mask"]
    assert pattern.revert(sequence)[0].tolist() == REFERENCE["reverted"]
    first = {str(t): int(pattern.steps(frames)[:, t].min()) for t in range(frames)}
    assert first == REFERENCE["first_step_with_timestep"]
    assert sequence[0, :, :REFERENCE["valid_layout_len"]].tolist() == REFERENCE["sequence_valid_only"]


@pytest.mark.parametrize("kind", KINDS)
def test_logits_come_back_by_frame(kind):
    pattern, codes = kind(3), torch.randint(20, (2, 3, 6))
    logits = torch.nn.functional.one_hot(pattern.build(codes, 20), 21).float()
    by_frame, known = pattern.revert_logits(logits)
    assert by_frame.shape == (2, 3, 6, 21) and known.shape == (2, 3, 6) and known.all()
    assert torch.equal(by_frame.argmax(-1), codes)


def test_logits_of_an_unfinished_sequence_are_masked():
    pattern = DelayPattern(4)
    by_frame, known = pattern.revert_logits(torch.randn(2, 4, 9, 5), n_frames=8)
    assert (~known).sum(-1).tolist() == [[0, 1, 2, 3]] * 2 and by_frame[~known].eq(0).all()


def test_gradients_pass_through_revert_logits():
    logits = torch.randn(1, 2, 6, 3, requires_grad=True)
    DelayPattern(2).revert_logits(logits)[0].sum().backward()
    assert logits.grad.sum() == 2 * 4 * 3


@pytest.mark.parametrize("n_q", [1, 2, 5])
def test_no_step_sees_the_code_it_writes_or_a_later_one_of_its_stream(n_q):
    for kind in KINDS:
        steps = kind(n_q).steps(10)
        assert (steps.diff(dim=1) > 0).all() and steps.min() == 1
    steps = DelayPattern(n_q).steps(10)
    assert (steps.diff(dim=0) == 1).all()  # a finer code comes after the coarser ones of its frame


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="n_q"): DelayPattern(0)
    with pytest.raises(ValueError, match="zigzag"): get_pattern("zigzag", 2)
    with pytest.raises(ValueError, match="codes must be"): DelayPattern(2).build(torch.zeros(1, 3, 4).long(), 9)
    with pytest.raises(ValueError, match="sequence must be"): DelayPattern(2).revert(torch.zeros(2, 4).long())
    with pytest.raises(ValueError, match="unfinished"): DelayPattern(2).revert(torch.full((1, 2, 5), 9), 9)
    with pytest.raises(ValueError, match="steps"): DelayPattern(4).revert(torch.zeros(1, 4, 3).long())
    with pytest.raises(ValueError, match="logits must be"): DelayPattern(2).revert_logits(torch.zeros(1, 2, 5))
    with pytest.raises(ValueError, match="n_frames"): DelayPattern(2).build(torch.zeros(1, 2, 0).long(), 9)
    with pytest.raises(NotImplementedError): StreamPattern(2).steps(3)


def test_incomplete_sequences_have_no_whole_number_of_frames():
    with pytest.raises(ValueError, match="6 steps"): DelayPattern(6).n_frames(6)
    with pytest.raises(ValueError, match="12 steps"): FlattenPattern(3).n_frames(12)


def test_random_shapes_come_back():
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        batch, n_q, n_frames = (int(n) for n in torch.randint(1, 9, (3,), generator=random))
        some = torch.randint(100, (batch, n_q, n_frames), generator=random)
        for kind in KINDS:
            assert torch.equal(kind(n_q).revert(kind(n_q).build(some, 100), 100), some)


def test_names():
    assert type(get_pattern("delay", 4)) is DelayPattern and type(get_pattern("parallel", 1)) is ParallelPattern
    assert type(get_pattern("flatten", 4)) is FlattenPattern
    assert DelayPattern(4).n_steps(500) == 504 and ParallelPattern(4).n_steps(500) == 501
    assert FlattenPattern(4).n_steps(500) == 2001


def test_flatten_writes_one_code_a_step_and_sees_all_before():
    pattern = FlattenPattern(4)
    assert pattern.valid(6).sum(0).tolist() == [0] + [1] * 24
    assert sorted(pattern.steps(6).flatten().tolist()) == list(range(1, 25))
    assert (pattern.steps(6).T.flatten().diff() == 1).all()  # frame after frame, stream after stream
