"""Units: k-means in a file, durations and rates, the decoder and the codec, published networks against transformers by hand."""
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiogen_nb.codec.losses import MelLoss
from audiogen_nb.data.toy_kinds import toy_clip
from audiogen_nb.hub import POCKET
from audiogen_nb.lab.trial import encode_clips
from audiogen_nb.lm.transformer import AudioLM, LMConfig
from audiogen_nb.peers.cpc import FeatureExtractor, MFCCFeatures
from audiogen_nb.peers.mel_codes import MelVocoder, fit_vocoder, mel_picture, vocoder_loss
from audiogen_nb.peers.units import (
    TransformersFeatures, UnitBook, UnitCodec, UnitDecoder, deduplicate, even_durations, fit_unit_book, repeat, unit_rates)
from audiogen_nb.text.hf import load_text_encoder
from audiogen_nb.train.lm import LMTraining, fit_lm

KINDS = ("dog", "rain", "clock", "siren")


@pytest.fixture(scope="module")
def clips():
    return [toy_clip(kind, seed, 0.64) for seed in range(3) for kind in KINDS]


@pytest.fixture(scope="module")
def audio(clips):
    return torch.stack([clip.audio for clip in clips])


@pytest.fixture(scope="module")
def features(audio):
    return MFCCFeatures()(audio)


@pytest.mark.parametrize("n_units", [8, 24])
def test_k_means_is_as_good_as_the_one_of_scipy(features, n_units):
    "Mean squared distance to the nearest centre over three seeds. On 384 frames the better start of k-means++ is worth a tenth"
    from scipy.cluster.vq import kmeans2
    x, own, theirs = features.flatten(0, -2).double(), [], []
    for seed in range(3):
        book = fit_unit_book(x.float(), n_units, seed=seed)
        z = (x - book.mean) / book.scale
        own.append(torch.cdist(z, book.centres.double()).square().amin(1).mean().item())
        tried = [torch.from_numpy(kmeans2(z.numpy(), n_units, 20, minit="++", rng=3 * seed + i)[0]) for i in range(3)]
        theirs.append(min(torch.cdist(z, centres).square().amin(1).mean().item() for centres in tried))
    assert sum(own) < 1.25 * sum(theirs), (own, theirs)


@pytest.fixture(scope="module")
def codec(audio, features):
    torch.manual_seed(0)
    book = fit_unit_book(features, 12)
    decoder = UnitDecoder(12, 16_000, 320, n_mels=16, width=8, dilations=(1,))
    decoder.start_from(book(features), audio)
    return UnitCodec(MFCCFeatures(), book, decoder.eval())


# Books

def test_a_unit_is_the_nearest_centre_of_standardised_features(features):
    book = fit_unit_book(features, 12)
    x = ((features - book.mean) / book.scale).flatten(0, 1)
    assert x.mean(0).abs().max() < 1e-4 and (x.std(0) - 1).abs().max() < 1e-3
    away = (x[:, None] - book.centres).square().sum(2)
    assert torch.equal(book(features).flatten(), away.argmin(1))
    assert abs(book.distortion(features) - (away.min(1).values.mean() / x.shape[1]).item()) < 1e-5
    stretched = features * torch.logspace(-2, 2, features.shape[-1])
    assert (fit_unit_book(stretched, 12)(stretched) == book(features)).float().mean() > 0.95, "ranges do not matter"


def test_every_knob_of_a_book_counts(features):
    book = fit_unit_book(features, 12)
    assert torch.equal(fit_unit_book(features, 12).centres, book.centres)
    for other in (dict(seed=1), dict(n_starts=1, seed=2)):
        assert not torch.equal(fit_unit_book(features, 12, **other).centres, book.centres)
    one = [fit_unit_book(features, 12, n_starts=n, seed=5).distortion(features) for n in (1, 4)]
    assert one[1] <= one[0] + 1e-6
    assert fit_unit_book(features, 4).distortion(features) > book.distortion(features)


def test_a_number_that_never_changes_is_no_division_by_zero(features):
    flat = features.clone()
    flat[..., 3] = 7.0
    assert fit_unit_book(flat, 4)(flat).shape == flat.shape[:2]


def test_a_book_is_saved_and_loaded(features, tmp_path):
    book = fit_unit_book(features, 12)
    book.save(tmp_path / "book.safetensors")
    again = UnitBook.load(tmp_path / "book.safetensors")
    assert (again.n_units, again.dim) == (12, 39) and torch.equal(again(features), book(features))
    assert [p.name for p in tmp_path.iterdir()] == ["book.safetensors"], "no temporary file stays"


@pytest.mark.parametrize("change, said", [
    (lambda s: s.pop("mean"), "no file of a UnitBook"), (lambda s: s.update(more=torch.zeros(1)), "no file of a UnitBook"),
    (lambda s: s.update(scale=torch.ones(38)), "no file of a UnitBook"), (lambda s: s.update(mean=s["mean"].half()), "no file of a UnitBook"),
    (lambda s: s.update(centres=torch.zeros(39)), "no file of a UnitBook"), (lambda s: s["scale"].zero_(), "not positive"),
    (lambda s: s["mean"].fill_(math.nan), "not finite")])
def test_files_that_are_no_books(features, tmp_path, change, said):
    path = tmp_path / "book.safetensors"
    fit_unit_book(features, 12).save(path)
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(ValueError, match=said):
        UnitBook.load(path)


def test_refusals_of_books(features, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        UnitBook.load(tmp_path / "none.safetensors")
    (tmp_path / "odd").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="damaged"):
        UnitBook.load(tmp_path / "odd")
    with pytest.raises(ValueError, match="must be finite"):
        fit_unit_book(features * math.nan, 4)
    with pytest.raises(ValueError, match="at least as many frames"):
        fit_unit_book(features[:1, :3], 4)
    with pytest.raises(ValueError, match="n_starts"):
        fit_unit_book(features, 4, n_starts=0)
    for odd in (features[..., :5], features.long()):
        with pytest.raises(ValueError, match="use those the book was made from"):
            UnitBook(4, 39)(odd)


# Durations

@pytest.mark.parametrize("n, card", [(1, 1), (1, 5), (50, 1), (200, 2), (200, 300)])
def test_repeat_is_the_inverse_of_deduplicate(n, card):
    units = torch.randint(card, (n,), generator=torch.Generator().manual_seed(n + card))
    runs, durations = deduplicate(units)
    assert torch.equal(repeat(runs, durations), units) and durations.min() >= 1 and durations.sum() == n
    assert (runs[1:] != runs[:-1]).all()


@pytest.mark.parametrize("n_runs, n_frames", [(1, 1), (1, 9), (3, 8), (7, 7), (50, 64)])
def test_even_durations_are_even(n_runs, n_frames):
    found = even_durations(n_runs, n_frames)
    assert found.sum() == n_frames and len(found) == n_runs and found.max() - found.min() <= 1 <= found.min()


def test_refusals_of_durations():
    with pytest.raises(ValueError, match="one sound"):
        deduplicate(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="one sound"):
        deduplicate(torch.zeros(3))
    for units, durations in (([1, 2], [1]), ([1, 2], [1, -1]), ([1, 2], [1.0, 1.0])):
        with pytest.raises(ValueError, match="durations whole numbers"):
            repeat(torch.tensor(units), torch.tensor(durations))
    with pytest.raises(ValueError, match="n_runs"):
        even_durations(9, 8)


def test_rates_by_hand():
    units = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 3, 3, 3, 3]])       # four runs of 4 frames
    found = unit_rates(units, 16, 50.0)
    wanted = {"nominal": 200.0, "frames": 100.0, "runs": 25.0, "units": 25.0}        # 12.5 runs a second, 2 bits each, no bits for durations
    assert found.keys() == wanted.keys() and all(abs(found[name] - wanted[name]) < 1e-9 for name in wanted)
    uneven = unit_rates(torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1], [2, 3, 3, 3, 3, 3, 3, 3]]), 16, 50.0)
    assert uneven["units"] == 25.0 and uneven["runs"] == 37.5                        # one bit more for a duration of 1 or 7
    assert unit_rates(units, 16, 100.0)["runs"] == 50.0


# Decoder and codec

def test_a_unit_starts_with_the_mean_picture_of_its_frames(codec, audio):
    decoder, units = codec.decoder, codec.encode(audio)[:, 0]
    picture = mel_picture(audio, decoder.config)
    assert decoder.columns == 2 and picture.shape == decoder.picture(units).shape
    columns = picture.unflatten(-1, (-1, 2)).transpose(1, 2)                         # (B, F, n_mels, 2)
    shown = decoder.picture(units).unflatten(-1, (-1, 2)).transpose(1, 2)
    for unit in units.unique():
        here = units == unit
        assert (shown[here] - columns[here].mean(0)).abs().max() < 1e-4
    other = UnitDecoder(13, 16_000, 320, n_mels=16, width=8, dilations=(1,))
    other.start_from(units, audio)
    assert (other.pictures.weight[12].unflatten(0, (16, 2)) - columns.flatten(0, 1).mean(0)).abs().max() < 1e-4, "of all, if nobody chose it"


@pytest.mark.parametrize("hop, columns", [(80, 1), (160, 1), (256, 1), (320, 2), (640, 4), (1000, 4), (1024, 4)])
def test_a_unit_of_any_length_has_whole_columns(hop, columns):
    decoder = UnitDecoder(4, 16_000, hop, n_mels=16, width=8, dilations=(1,))
    assert decoder.columns == columns and decoder.config.hop_length == hop
    assert decoder(torch.zeros(1, 6, dtype=torch.int64)).shape == (1, 1, 6 * hop)


def test_the_codec_has_the_face_of_a_codec(codec, audio, clips):
    odd = audio[:, :, :7001]
    codes = codec.encode(odd)
    assert codes.shape == (12, 1, 22) and codes.dtype == torch.int64
    assert codec.decode(codes).shape == (12, 1, 7040) and codec.decode(codes, 7001).shape == odd.shape
    assert torch.equal(codec.decode(codes)[3:4], codec.decode(codes[3:4]))
    assert (codec.n_q, codec.card, codec.frame_rate) == (1, 12, 50.0) and abs(codec.bit_rate - 50 * math.log2(12)) < 1e-9
    assert not codec.decode(codes).requires_grad
    tokens = encode_clips(codec, clips)
    assert tokens.shape == (12, 1, 32) and tokens[0][1] == list(clips[0].captions)
    for wrong, said in ((codes + 12, "0..11"), (codes.expand(-1, 2, -1), "streams")):
        with pytest.raises(ValueError, match=said):
            codec.decode(wrong)
    with pytest.raises(ValueError, match="length"):
        codec.decode(codes, 7041)


@pytest.mark.parametrize("name, part", [("dim", UnitBook(12, 13)), ("n_units", UnitBook(13, 39))])
def test_parts_that_do_not_fit(codec, name, part):
    with pytest.raises(ValueError, match=f"do not fit: {name}"):
        UnitCodec(codec.features, part, codec.decoder)


@pytest.mark.parametrize("name, given", [("hop_length", (12, 16_000, 160)), ("sample_rate", (12, 8_000, 320))])
def test_decoders_that_do_not_fit(codec, name, given):
    with pytest.raises(ValueError, match=f"do not fit: {name}"):
        UnitCodec(codec.features, codec.book, UnitDecoder(*given, n_mels=16, width=8))


def test_a_decoder_learns_from_what_it_is_given_and_goes_on_where_it_stopped(audio, features, tmp_path):
    units = fit_unit_book(features, 12)(features)

    def fresh():
        torch.manual_seed(0)
        decoder = UnitDecoder(12, 16_000, 320, n_mels=16, width=8, dilations=(1,))
        decoder.start_from(units, audio)
        return decoder
    one, two, more = fresh(), fresh(), dict(batch_size=4, given=units, progress=False)
    log = fit_vocoder(one, audio, 12, tmp_path / "one", **more)
    assert sum(row["mel"] for row in log[-3:]) < 0.95 * sum(row["mel"] for row in log[:3])
    fit_vocoder(two, audio, 12, tmp_path / "one", **more)                            # reads the finished run
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert not torch.equal(one.pictures.weight, fresh().pictures.weight), "the pictures learn, too"


def test_a_vocoder_of_pictures_is_trained_as_before(audio):
    torch.manual_seed(0)
    vocoder, loss = MelVocoder(width=8, dilations=(1,)), MelLoss(16_000, windows=(128,))
    some = audio[:2, :, :8192]
    own, given = (vocoder_loss(vocoder, some, loss, picture)["loss"] for picture in (None, mel_picture(some, vocoder.config)))
    assert torch.equal(own, given)


def test_a_language_model_writes_units_from_text(codec, clips, tmp_path):
    encoder = load_text_encoder(POCKET / "text")
    tokens = encode_clips(codec, clips)
    torch.manual_seed(0)
    lm = AudioLM(LMConfig(1, 12, 16, 1, 2, encoder.width, max_frames=32))
    log = fit_lm(lm, tokens, encoder, LMTraining(n_steps=20, batch_size=8, learning_rate=1e-2, warmup=2), tmp_path, progress=False)
    assert log[-1]["loss"] < log[0]["loss"] - 0.2
    codes = lm.generate(*encoder(["a dog barks"]), 32, seeds=[0])
    assert codes.shape == (1, 1, 32) and codec.decode(codes).shape == (1, 1, 32 * 320)


# Published networks

def tiny(kind, folder, do_normalize, **more):
    "A random checkpoint in a folder, and the network"
    transformers = pytest.importorskip("transformers")
    shape = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, conv_dim=(16,) * 7,
                 num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, **more)
    torch.manual_seed(0)
    network = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**shape)).eval()
    network.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return network


@pytest.mark.parametrize("kind, do_normalize, more", [
    ("Hubert", True, {}), ("Hubert", False, {}), ("Wav2Vec2", True, {}),
    ("Wav2Vec2", False, dict(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True)), ("WavLM", True, {})])
def test_a_layer_equals_transformers_by_hand(kind, do_normalize, more, audio, tmp_path):
    network = tiny(kind, tmp_path, do_normalize, **more)
    for layer, n in ((0, 4000), (2, 4000), (3, 4001)):
        extractor, x = TransformersFeatures(tmp_path, layer), audio[:2, 0, :n]
        if do_normalize:
            x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-7).sqrt()
        frames = -(-n // 320)
        x = torch.nn.functional.pad(x, (40, (frames - 1) * 320 + 400 - 40 - n))
        with torch.no_grad():
            wanted = network(x, output_hidden_states=True).hidden_states[layer]
        found = extractor(audio[:2, :, :n])
        assert found.shape == (2, frames, 24) and (found - wanted).abs().max() < 1e-5


def test_a_network_as_features(audio, tmp_path):
    network = tiny("Hubert", tmp_path, False)
    published = TransformersFeatures(tmp_path, 2)
    assert isinstance(published, FeatureExtractor) and (published.sample_rate, published.hop_length, published.dim) == (16_000, 320, 24)
    assert published.field == 400
    first = published(audio[:2])
    assert not first.requires_grad and not any(p.requires_grad for p in published.parameters())
    assert torch.equal(published.train()(audio[:2]), first), "frozen: nothing is dropped or hidden"
    for n in (1, 319, 320, 321, 400, 5000):
        assert published(audio[:1, :, :n]).shape == (1, -(-n // 320), 24)
    given = TransformersFeatures(network, 2, published.extractor)
    assert (given(audio[:2]) - first).abs().max() < 1e-5
    assert (TransformersFeatures(tmp_path, 1)(audio[:2]) - first).abs().max() > 1e-3, "layers differ"
    book = fit_unit_book(published(audio), 8)
    codec = UnitCodec(published, book, UnitDecoder(8, 16_000, 320, n_mels=16, width=8, dilations=(1,)))
    assert codec.encode(audio[:2, :, :7001]).shape == (2, 1, 22)


def test_refusals_of_networks(audio, tmp_path):
    network = tiny("Hubert", tmp_path / "hubert", True)
    with pytest.raises(ValueError, match="layer must be in 0..3"):
        TransformersFeatures(tmp_path / "hubert", 4)
    with pytest.raises(ValueError, match="feature extractor"):
        TransformersFeatures(network, 1)
    with pytest.raises(FileNotFoundError, match="cannot load"):
        TransformersFeatures(tmp_path / "none", 1, local_files_only=True)
    with pytest.raises(ValueError, match=r"must be \(B, 1, T\)"):
        TransformersFeatures(tmp_path / "hubert", 1)(audio[:, 0])
    weights = tmp_path / "hubert" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "hubert" / "pytorch_model.bin")
    weights.unlink()                                                                 # pickled weights are not read
    with pytest.raises(FileNotFoundError, match="safetensors"):
        TransformersFeatures(tmp_path / "hubert", 1)
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel
    ast = ASTModel(ASTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(ValueError, match="does not read waveforms"):
        TransformersFeatures(ast, 1, ASTFeatureExtractor())
