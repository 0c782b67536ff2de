"The word-to-sound view: recomputed attention, and words left out."
import pytest
import torch

from audiogen_nb.lab.words import attention_weights, leave_one_out, show_words, without_each_word, word_gains


def test_attention_weights_are_what_the_block_uses(tiny):
    codes = tiny.generate_codes("a dog barks in the rain", duration=0.3, seed=0)
    weights = attention_weights(tiny, codes, "a dog barks in the rain")
    c, n = tiny.lm.config, len(tiny.text_encoder.tokens("a dog barks in the rain"))
    assert weights.shape == (c.n_layers, c.n_heads, 30, n) and torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
    condition = tiny.lm.condition(*tiny.text_encoder(["a dog barks in the rain"]))
    outputs, block = [], tiny.lm.blocks[0]
    hook = block.cross_attention.out_proj.register_forward_hook(lambda module, args, out: outputs.append(args[0]))
    with torch.no_grad():
        tiny.lm.step(tiny.lm.pattern.build(codes, tiny.lm.special)[..., :-1], condition)
    hook.remove()
    first = outputs[0][0, : 30].unflatten(-1, (c.n_heads, -1)).transpose(0, 1)           # stream 0 of frame f is written by step f
    second = outputs[0][0, 1 : 31].unflatten(-1, (c.n_heads, -1)).transpose(0, 1)
    values = condition.kv[0][1][0]                                                        # (H, L, d)
    assert torch.allclose(weights[0] @ values, (first + second) / 2, atol=1e-5)           # the mean of the two streams' steps
    assert not any(b.cross_norm._forward_hooks for b in tiny.lm.blocks)


def test_hooks_are_removed_after_an_error(tiny):
    with pytest.raises(Exception):
        attention_weights(tiny, torch.full((1, 2, 5), 999), "rain")
    assert not any(b.cross_norm._forward_hooks for b in tiny.lm.blocks)


def test_words_that_have_a_say(tiny):
    assert [word for word, _ in without_each_word(tiny, "A dog, in the rain!")] == ["dog", "rain"]
    assert dict(without_each_word(tiny, "dog rain")) == {"dog": "rain", "rain": "dog"} and without_each_word(tiny, "dog") == []


def test_leaving_words_out(tiny):
    whole, parts = leave_one_out(tiny, "a dog in the rain", seed=3, duration=0.3)
    assert torch.allclose(whole, tiny.generate("a dog in the rain", seed=3, duration=0.3)[0], atol=1e-5)
    for part in parts:
        alone = tiny.generate(part.text, seed=3, duration=0.3)[0]
        assert torch.allclose(part.audio, alone, atol=1e-5) and part.word not in part.text.split() and part.difference >= 0
    with pytest.raises(ValueError, match="could be left out"):
        leave_one_out(tiny, "dog")


def test_gains_are_differences_of_log_likelihoods(tiny):
    codes = tiny.generate_codes("a dog in the rain", duration=0.3, seed=0)
    names, gains = word_gains(tiny, codes, "a dog in the rain")
    assert names == ["dog", "rain"] and gains.shape == (2, 30)
    expected = tiny.log_likelihood(codes, "a dog in the rain") - tiny.log_likelihood(codes, "a in the rain")
    assert torch.allclose(gains[0], expected[0], atol=1e-5)


def test_pictures(tiny):
    audio = tiny.generate("rain", seed=0, duration=0.3)[0]
    figure = show_words(audio, tiny.sample_rate, ["dog", "rain"], torch.randn(2, 30), "title", centre=True)
    assert len(figure.axes) == 4 and [label.get_text() for label in figure.axes[2].get_yticklabels()] == ["dog", "rain"]
    with pytest.raises(ValueError, match="a row for each of the 3 words"):
        show_words(audio, tiny.sample_rate, ["a", "b", "c"], torch.randn(2, 30))
