"Text encoders: the bundled table, distilling, a tiny T5, null conditions, errors. Nothing is downloaded."
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import audiogen_nb
from audiogen_nb.text.captions import CaptionShards
from audiogen_nb.text.distill import (distill_pocket_text, importance, pocket_vocab, principal_directions, quantise_rows,
                                 read_sound_words, word_forms)
from audiogen_nb.text.hf import HFTextEncoder, load_text_encoder
from audiogen_nb.text.encoders import (
    PocketTextEncoder, TextEncoder, check_texts, content_words, drop_text, optional_import, order_features, pad_states,
    word_pieces)

BUNDLED = Path(audiogen_nb.__file__).parent / "pocket" / "text"
WORDS = "[PAD] [UNK] [CLS] [SEP] , a the of in sound dog bark rain down ##pour ##s ##ing cat bell".split()
SYNONYMS = [("hound", "dog"), ("downpour", "rain"), ("automobile", "car"), ("gale", "wind"), ("locomotive", "train"),
            ("feline", "cat"), ("chime", "bell"), ("detonation", "explosion"), ("aircraft", "plane"), ("steed", "horse")]


@pytest.fixture(scope="module")
def pocket():
    return load_text_encoder(BUNDLED)


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    from tokenizers.processors import BertProcessing
    backend = word_pieces(WORDS)
    backend.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture(scope="module")
def t5(tokenizer):
    import transformers
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=len(WORDS), d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, pad_token_id=0)
    return HFTextEncoder(transformers.T5EncoderModel(config), tokenizer, max_length=8)


def word_vectors(encoder, words):
    states = encoder(list(words))[0][:, 0, :encoder.width - encoder.n_order]
    return torch.nn.functional.normalize(states, dim=-1)


def test_bundled_folder_is_small_and_complete():
    assert sorted(path.name for path in BUNDLED.iterdir()) == ["config.json", "table.safetensors", "vocab.txt"]
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) < 2.6e6


def test_synonyms_find_each_other(pocket):
    first, second = (word_vectors(pocket, words) for words in zip(*SYNONYMS))
    assert (first @ second.T).argmax(1).tolist() == list(range(len(SYNONYMS)))


def test_shapes_mask_and_null(pocket):
    states, mask = pocket(["a dog barks", None, "wind"])
    assert states.shape == (3, 3, pocket.width) and states.dtype == torch.float32 and mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [3, 0, 2]  # the mean, and a state per known piece
    assert states[~mask].eq(0).all() and states[mask].ne(0).any(-1).all()
    states, mask = pocket([None, None])
    assert states.shape == (2, 1, pocket.width) and not mask.any() and states.eq(0).all()


def test_a_batch_mate_changes_nothing(pocket, t5):
    for encoder in (pocket, t5):
        alone, mask = encoder(["a dog"])
        batch, _ = encoder(["the bark of a cat", None, "a dog"])
        assert torch.equal(batch[2, :mask.sum()], alone[0])


def test_small_refusals():
    with pytest.raises(ValueError, match=r"\[UNK\]"): word_pieces(["dog"])
    with pytest.raises(ValueError, match="even"): order_features(3, n_order=5)
    with pytest.raises(TypeError, match=r"texts\[1\] must be a str"): check_texts(["rain", 7])
    with pytest.raises(ImportError, match="pip install nosuchthing"): optional_import("nosuchthing", "this test")
    with pytest.raises(ValueError, match="4 rows"):
        PocketTextEncoder(["[UNK]", "the", "dog", "rain"], torch.zeros(3, 2).char(), 0.1)


def test_spelling_does_not_matter(pocket):
    assert torch.equal(pocket(["A DOG, barks!"])[0], pocket(["dog barks"])[0])
    assert torch.equal(pocket(["dög"])[0], pocket(["dog"])[0])


def test_unknown_words_come_in_pieces(pocket):
    assert len(pocket.pieces("grumblefax")) > 1
    assert "downpour" in pocket.vocab and len(pocket.pieces("downpour")) == 1


def test_order_is_told_apart(pocket):
    one, two = pocket(["a bell then a dog"])[0][0], pocket(["a dog then a bell"])[0][0]
    assert torch.allclose(one[0], two[0], atol=1e-5) and not torch.allclose(one, two, atol=1e-2)


@pytest.mark.parametrize("texts, error, message", [
    ("dog", TypeError, "list"), (["dog", 3], TypeError, r"texts\[1\]"), ([], ValueError, "empty list"),
    ([" \n"], ValueError, r"texts\[0\] is empty"), (["dog " * 65], ValueError, "at most 64"), (["!?"], ValueError, "no word"),
])
def test_bad_texts_are_refused(pocket, texts, error, message):
    with pytest.raises(error, match=message): pocket(texts)


def test_64_words_are_not_too_long(pocket):
    assert pocket(["dog " * 64])[1].sum() == 65


def test_pocket_round_trip(pocket, tmp_path):
    folder = pocket.save(tmp_path / "deep" / "text")
    again = load_text_encoder(folder)
    assert torch.equal(again(["a dog in the rain"])[0], pocket(["a dog in the rain"])[0])
    assert again.max_length == pocket.max_length and again.vocab == pocket.vocab
    pocket.save(folder)  # a second time, over the first
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "table.safetensors", "vocab.txt"]


def test_options_of_the_pocket_encoder(pocket):
    plain = PocketTextEncoder(pocket.vocab, pocket.table, pocket.scale, n_order=0, max_length=2)
    assert plain.width == 64 and torch.equal(plain(["dog"])[0], pocket(["dog"])[0][..., :64])
    with pytest.raises(ValueError, match="at most 2"): plain(["dog cat bell"])
    with pytest.raises(ValueError, match="int8"): PocketTextEncoder(pocket.vocab, pocket.table.float(), 1.0)
    assert not list(pocket.parameters()) and "table" not in pocket.state_dict()


def test_load_errors(tmp_path, t5):
    with pytest.raises(FileNotFoundError, match="config.json"): load_text_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"type": "abacus"}))
    with pytest.raises(ValueError, match="abacus"): load_text_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"type": "pocket", "n_order": 8, "max_length": 64}))
    with pytest.raises(FileNotFoundError, match="vocab.txt"): load_text_encoder(tmp_path)
    with pytest.raises(ValueError, match="not 'pocket'"): PocketTextEncoder.load(t5.save(tmp_path / "hf"))


def test_distilling_a_tiny_bert(tokenizer, tmp_path):
    import transformers
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    transformers.BertModel(transformers.BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    made = distill_pocket_text(tmp_path / "bert", tmp_path / "text", dim=4, words={"meow": "cat", "downpour": "rain"})
    rows = dict(zip(made.vocab, made.table))
    meow, meows = rows["meow"].float(), rows["meows"].float()  # one gloss, one direction; the importance differs
    assert torch.cosine_similarity(meow, meows, dim=0) > 0.999 and "[PAD]" not in rows and not rows["[UNK]"].any()
    assert made.width == 12 and torch.equal(load_text_encoder(tmp_path / "text").table, made.table)
    other = distill_pocket_text(tmp_path / "bert", tmp_path / "text2", dim=4, words={"meow": "cat"}, prefix="a dog")
    assert not torch.equal(other.table, made.table[:len(other.table)])  # another phrase, another reading


def test_t5_states(t5):
    states, mask = t5(["a dog", None, "the bark of a dog"])
    assert states.shape == (3, 7, 16) and mask.sum(1).tolist() == [4, 0, 7]
    assert states[~mask].eq(0).all() and not states.requires_grad
    ids = t5.tokenizer("a dog", return_tensors="pt").input_ids
    with torch.no_grad(): reference = t5.model(input_ids=ids).last_hidden_state
    assert torch.allclose(states[0, :4], reference[0], atol=1e-5)


def test_t5_states_are_those_of_a_masked_padded_batch(t5):
    texts = ["a dog", "the bark of a dog in the rain"]
    t5.max_length = 20
    states, mask = t5(texts)
    t5.max_length = 8
    batch = t5.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        padded = t5.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    assert torch.equal(mask, batch.attention_mask.bool())
    assert torch.allclose(states, padded * mask[..., None], atol=1e-5)
    assert [len(t5.tokens(text)) for text in texts] == mask.sum(1).tolist()


def test_the_papers_normaliser(t5):
    assert content_words("Two dogs are barking, 12 times!") == "two dog bark time"
    assert content_words("the bells ring") == content_words("a bell is ringing")
    for sound in ("fire", "saw", "click", "ring", "cry"):      # words that search engines' lists throw out
        assert content_words(f"the {sound}") == {"saw": "see"}.get(sound, sound)
    assert content_words("what is that") == "what is that"     # nothing would be left
    lemmas = HFTextEncoder(t5.model, t5.tokenizer, max_length=8, normalise=True)
    assert torch.equal(lemmas(["the dogs"])[0], t5(["dog"])[0]) and not torch.equal(t5(["the dogs"])[0], t5(["dog"])[0])


def test_normaliser_round_trip_and_missing_package(t5, tmp_path):
    lemmas = HFTextEncoder(t5.model, t5.tokenizer, max_length=8, normalise=True)
    assert load_text_encoder(lemmas.save(tmp_path)).normalise
    config = json.loads((tmp_path / "config.json").read_text())
    del config["normalise"]                                    # written before there was the option
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not load_text_encoder(tmp_path).normalise
    code = "import sys, audiogen_nb.text.encoders as t; sys.modules['simplemma'] = None; t.content_words('dogs')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install simplemma" in run.stderr


def test_fingerprints_tell_encoders_apart(pocket, t5):
    assert pocket.fingerprint() == load_text_encoder(BUNDLED).fingerprint() != t5.fingerprint()
    before = t5.fingerprint()
    weight = next(t5.model.parameters())
    weight.data[0, 0] += 1
    changed = t5.fingerprint()
    weight.data[0, 0] -= 1
    assert changed != before and HFTextEncoder(t5.model, t5.tokenizer, max_length=9).fingerprint() != before


class Counting(TextEncoder):
    "Asks another encoder, and counts the captions"
    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.width, self.max_length, self.read = encoder, encoder.width, encoder.max_length, 0

    def encode(self, texts):
        self.read += len(texts)
        return self.encoder.encode(texts)


def test_caption_shards_say_what_the_encoder_says_and_ask_once(t5, tmp_path):
    batch, encoder = ["a dog", None, "the rain", "a dog"], Counting(t5)
    expected, mask = t5(batch)
    assert CaptionShards(encoder, tmp_path).fill(filter(None, batch), progress=False) == 2
    for _ in range(2):
        cached = CaptionShards(encoder, tmp_path)
        states, kept = cached(batch)
        assert torch.equal(kept, mask) and torch.equal(states, expected.half().float()) and states.dtype == torch.float32
        assert (states - expected).abs().max() <= 2 ** -11 * expected.abs().max()
    assert encoder.read == 2 and (cached.width, cached.max_length) == (16, 8) and cached.fill(["a dog"], progress=False) == 0
    unknown = [cached(["dog rain"])[0] for _ in range(2)]                # in memory, rounded as on disk
    assert encoder.read == 3 and torch.equal(*unknown) and torch.equal(unknown[0], t5(["dog rain"])[0].half().float())
    with pytest.raises(ValueError, match="at most 8"): cached(["dog " * 9])
    assert torch.equal(load_text_encoder(cached.encoder.encoder.save(tmp_path / "text"))(["a dog"])[0], t5(["a dog"])[0])


def test_caption_shards_mend_damage_and_know_their_encoder(t5, pocket, tmp_path):
    encoder = Counting(t5)
    cached = CaptionShards(encoder, tmp_path)
    cached.fill(["a dog"], progress=False)
    path, = cached.folder.glob("captions-*")
    whole, expected = path.read_bytes(), cached(["a dog"])[0]
    for damage in (b"", b"{}", whole[:-5], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damage)
        encoder.read = 0
        damaged = CaptionShards(encoder, tmp_path)
        assert "a dog" not in damaged and torch.equal(damaged(["a dog"])[0], expected) and encoder.read == 1
        assert damaged.fill(["a dog"], progress=False) == 1 and path.read_bytes() == whole
    assert CaptionShards(pocket, tmp_path).folder != cached.folder


class Loud(Counting):
    "Its numbers are too large for float16"
    def encode(self, texts):
        return [states * 1e6 for states in super().encode(texts)]


def test_caption_shards_keep_numbers_that_float16_cannot_hold(t5, tmp_path):
    loud = Loud(t5)
    CaptionShards(loud, tmp_path).fill(["a dog", "the rain"], progress=False)
    loud.read = 0
    assert torch.equal(CaptionShards(loud, tmp_path)(["the rain"])[0], 1e6 * t5(["the rain"])[0]) and loud.read == 0


def test_caption_shards_grow_and_are_shared(t5, tmp_path):
    encoder, words = Counting(t5), WORDS[4:]
    first, second = (CaptionShards(encoder, tmp_path) for _ in range(2))
    assert first.fill(words[:2], progress=False) == 2 and second.fill(words, shard_size=2, progress=False) == len(words) - 2
    assert encoder.read == len(words) and first.fill(words, progress=False) == 0            # it finds the other's shards
    assert torch.equal(first(words)[0], t5(words)[0].half().float()) and encoder.read == len(words)
    assert not list(first.folder.glob(".*"))


def test_training_with_an_expensive_encoder_reads_each_caption_once(pocket, tmp_path, monkeypatch):
    from audiogen_nb.train.lm import LMTraining, fit_lm
    from audiogen_nb.train.tokens import TokenCache
    from audiogen_nb.lm.transformer import AudioLM
    monkeypatch.setenv("AUDIOGEN_NB_CACHE", str(tmp_path / "cache"))
    tokens = TokenCache(torch.randint(32, (6, 2, 20)).short(), [[f"sound {'abcdef'[i]}"] for i in range(6)])
    encoder, settings = Counting(pocket), LMTraining(n_steps=4, batch_size=6, drop_text=0.0)
    for slow, run in ((False, "plain"), (True, "cached"), (True, "again")):
        encoder.slow, encoder.read = slow, 0
        torch.manual_seed(0)
        log = fit_lm(AudioLM(AudioLM.preset("tiny")), tokens, encoder, settings, tmp_path / run, progress=False)
        if run == "plain": reference, asked = log, encoder.read
        elif run == "cached":
            assert encoder.read == 6 < asked
            for row, exact in zip(log, reference):
                assert row["loss"] == pytest.approx(exact["loss"], rel=1e-3)         # float16 states
            kept = log
        else: assert log == kept and encoder.read == 0


def test_t5_is_frozen(t5):
    t5.train()
    assert not t5.training and not t5.model.training and not any(p.requires_grad for p in t5.parameters())


def test_t5_round_trip_and_errors(t5, tmp_path):
    again = load_text_encoder(t5.save(tmp_path))
    assert torch.equal(again(["a dog"])[0], t5(["a dog"])[0]) and (again.max_length, again.width) == (8, 16)
    by_folder = HFTextEncoder(tmp_path / "encoder")
    assert by_folder.name is None and torch.equal(by_folder(["a dog"])[0], t5(["a dog"])[0])
    with pytest.raises(ValueError, match="at most 8"): t5(["dog " * 7])
    with pytest.raises(ValueError, match="tokenizer"): HFTextEncoder(t5.model)


def test_transformers_is_imported_lazily():
    code = "import sys, audiogen_nb.text.hf as t; sys.modules['transformers'] = None; t.HFTextEncoder('t5-small')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install transformers" in run.stderr
    code = "import sys, audiogen_nb.text.hf; assert not {'transformers', 'matplotlib', 'simplemma'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_drop_text():
    texts = [f"sound {i}" for i in range(1000)]
    dropped = drop_text(texts, 0.1, torch.Generator().manual_seed(0))
    assert 60 < dropped.count(None) < 140 and all(d in (None, t) for d, t in zip(dropped, texts))
    assert dropped == drop_text(texts, 0.1, torch.Generator().manual_seed(0))
    assert drop_text(texts, 0.0, torch.Generator()) == texts and set(drop_text(texts, 1.0, torch.Generator())) == {None}
    with pytest.raises(ValueError, match="p must"): drop_text(texts, 1.5, torch.Generator())


def test_small_parts():
    assert check_texts(["a", None]) == ["a", None]
    assert pad_states([torch.ones(2, 3), None], 3)[1].tolist() == [[True, True], [False, False]]
    assert word_forms("hum")[1:] == ["hums", "hummed", "humming"] and word_forms("buzz")[1:] == ["buzzes", "buzzed", "buzzing"]
    assert pocket_vocab(["[CLS]", "[", "bark", "ж"], ["bark"]) == ["[UNK]", "[", "bark", "barks", "barked", "barking"]
    words = read_sound_words()
    assert words["neigh"] != "neigh" and words["dog"] == "dog"
    assert importance(["[UNK]", "a"] + ["xy"] * 100)[-1] == 0.5
    assert quantise_rows(torch.tensor([[254.0, -2.0]]))[0].tolist() == [[127, -1]]
    assert principal_directions(torch.randn(20, 5), 3).norm(dim=-1).sub(1).abs().max() < 1e-5
    with pytest.raises(NotImplementedError): TextEncoder().encode(["x"])
