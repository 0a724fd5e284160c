"Saving models: processes that are killed, and a folder that is used again."
import random
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from sparse_ae.hub import README
from sparse_ae.io import CONFIG, WEIGHTS
from sparse_ae.models import SparseAutoencoder, TiedWeightSparseAutoencoder


def test_killed_while_saving_leaves_a_model_that_loads(tmp_path):
    code = textwrap.dedent(f'''
        import torch
        from sparse_ae import SparseAutoencoder
        model = SparseAutoencoder(400, 300)
        for number in range(100_000):
            with torch.no_grad():
                for p in model.parameters(): p.fill_(number)
            model.save_pretrained({str(tmp_path)!r})
            print(number, flush=True)
    ''')
    delays = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(delays.uniform(0, 0.2))
        process.kill()
        process.communicate()
        values = {v for p in SparseAutoencoder.from_pretrained(tmp_path).parameters()
                  for v in p.unique().tolist()}
        assert len(values) == 1  # all parameters from the same save


def test_saving_over_another_model(tmp_path):
    SparseAutoencoder(6, 4).save_pretrained(tmp_path)
    tied = TiedWeightSparseAutoencoder(9, 5, hidden_dims=(), activation='sigmoid',
                                       decoder_norm='atom')
    for p in tied.parameters(): p.data += 0.3*torch.randn_like(p)  # biases start at zero
    tied.save_pretrained(tmp_path)
    loaded = TiedWeightSparseAutoencoder.from_pretrained(tmp_path)
    x = torch.rand(3, 9)
    assert torch.equal(loaded(x), tied(x)) and not loaded.training
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


@pytest.mark.parametrize('subfolder,card,names', [
    ('', None, [README]), ('a', None, ['a/README.md', README]), ('a', False, [])])
def test_cards_that_an_upload_gets(tmp_path, monkeypatch, subfolder, card, names):
    "Uploads themselves are tested with a server, in `test_hub.py`."
    given = {}
    monkeypatch.setattr('sparse_ae.io.upload', lambda *args, cards, **where: given.update(cards))
    SparseAutoencoder(6, 4).save_pretrained(tmp_path, push_to_hub=True, repo_id='owner/name',
                                            subfolder=subfolder, card=card)
    assert list(given) == names
    own = (tmp_path/README).read_text() if names else None
    if names: assert given[names[0]] == own
    if len(names) == 2: assert given[README] != own and "subfolder='a'" in given[README]
