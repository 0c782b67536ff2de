"The quantiser in several processes: the codebooks of one process that sees the whole batch."
import subprocess
import sys

import torch

from audiogen_nb.codec.vq import ResidualQuantizer, draw_levels

WORKER = """
import sys, torch
from torch import distributed
from audiogen_nb.codec.vq import ResidualQuantizer
from audiogen_nb.engine.processes import share_codebooks
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
state = torch.load(f"{folder}/start.pt")
torch.manual_seed(100 + rank)                       # the processes' own chance must not matter
rvq = ResidualQuantizer(4, 3, 16, decay=0.8, dropout=0.6)
share_codebooks(rvq)
rvq.start_from(state["start"], torch.Generator().manual_seed(rank))
rvq.codebooks[1].entries += 30; rvq.codebooks[1].total += 30
out = [rvq(batch.chunk(2)[rank], torch.Generator().manual_seed(n)) for n, batch in enumerate(state["batches"])]
result = {"state": rvq.state_dict(), "codes": [o.codes for o in out], "latent": [o.latent for o in out],
          "commitment": torch.stack([o.commitment for o in out])}
torch.save(result, f"{folder}/rank{rank}.pt")
distributed.destroy_process_group()
"""


def test_two_processes_hold_the_single_process_codebooks(tmp_path):
    "k-means, averages, revival and dropout, with half of every batch each"
    torch.manual_seed(0)
    start, batches = torch.randn(300, 4), [torch.randn(6, 4, 40) for _ in range(12)]
    torch.save({"start": start, "batches": batches}, tmp_path / "start.pt")
    both = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(tmp_path)]) for rank in (0, 1)]
    single = ResidualQuantizer(4, 3, 16, decay=0.8, dropout=0.6)
    single.start_from(start, torch.Generator().manual_seed(0))
    single.codebooks[1].entries += 30
    single.codebooks[1].total += 30
    out = [single(batch, torch.Generator().manual_seed(n)) for n, batch in enumerate(batches)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for name, value in single.state_dict().items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        torch.testing.assert_close(first["state"][name], value, rtol=1e-4, atol=1e-4)
    assert single.codebooks[1].entries.abs().max() < 20, "dead entries were revived"
    for n, whole in enumerate(out):
        assert torch.equal(torch.cat([first["codes"][n], second["codes"][n]]), whole.codes)
        torch.testing.assert_close(torch.cat([first["latent"][n], second["latent"][n]]), whole.latent, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((first["commitment"] + second["commitment"]) / 2,
                               torch.stack([o.commitment for o in out]), rtol=1e-4, atol=1e-4)


def test_encode_never_leaves_the_codebook():
    "Any finite latent, huge or tiny, gets codes that exist; encoding what was decoded changes nothing"
    torch.manual_seed(0)
    rvq = ResidualQuantizer(4, 1, 16).eval()
    for scale in (1e-20, 1e-3, 1.0, 1e6):
        codes = rvq.encode(scale * torch.randn(2, 4, 50))
        assert 0 <= codes.min() and codes.max() < 16
    assert torch.equal(rvq.encode(rvq.decode(codes)), codes)


def test_dropout_trains_prefixes():
    "Each item comes out as its own number of streams decode; without dropout nothing changes"
    torch.manual_seed(0)
    latent = torch.randn(8, 4, 30)
    rvq = ResidualQuantizer(4, 3, 16, dropout=0.7)
    rvq.start_from(latent.transpose(1, 2).flatten(0, 1))
    codes = rvq.encode(latent)
    levels = draw_levels(8, 3, 0.7, torch.Generator().manual_seed(3))
    assert 1 <= levels.min() < levels.max() <= 3
    want = torch.cat([rvq.decode(codes[i:i + 1, :n]) for i, n in enumerate(levels)])
    leaf = latent.clone().requires_grad_()
    out = rvq(leaf, torch.Generator().manual_seed(3))
    torch.testing.assert_close(out.latent.detach(), want, rtol=0, atol=1e-5)
    assert torch.equal(out.codes, codes), "all levels still have codes"
    (pull,) = torch.autograd.grad(out.commitment, leaf)
    only_first = levels == 1
    assert only_first.any() and (pull[only_first].abs().sum() > 0)
    torch.testing.assert_close(rvq.eval()(latent).latent, rvq.decode(rvq.encode(latent)), rtol=0, atol=1e-5)
