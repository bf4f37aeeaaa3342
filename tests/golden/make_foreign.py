"""Makes the golden files of foreign formats that no one else made: run it where DALL-E and clip-anytorch are installed.

python tests/golden/make_foreign.py tests/golden

- openai_dvae/encoder.pkl, decoder.pkl: whole modules, as OpenAI published its dVAE
  (the decoder in PyTorch's old format);
- openai_dvae/expected.pt: their weights, and what they answer to an input;
- clip_archive.pt: a TorchScript archive, as OpenAI published CLIP; clip_archive_state.pt: the same weights, plain.
"""

import sys
from pathlib import Path

import attr
import clip.model
import torch
from dall_e import Decoder, Encoder

folder = Path(sys.argv[1])
torch.manual_seed(0)

attr.validators.set_disabled(True)  # the originals refuse to be this small
encoder = Encoder(n_hid=8, n_blk_per_group=1, vocab_size=16)
decoder = Decoder(n_init=8, n_hid=8, n_blk_per_group=1, vocab_size=16)
torch.save(encoder, folder / "openai_dvae/encoder.pkl")
torch.save(decoder, folder / "openai_dvae/decoder.pkl", _use_new_zipfile_serialization=False)
images = torch.rand(2, 3, 32, 32)
logits = encoder(0.8 * images + 0.1)
codes = logits.argmax(1)
pictures = decoder(torch.nn.functional.one_hot(codes, 16).permute(0, 3, 1, 2).float())
expected = {
    "encoder": dict(encoder.state_dict()),
    "decoder": dict(decoder.state_dict()),
    "images": images,
    "logits": logits,
    "codes": codes,
    "decoded": ((pictures[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1),
}
torch.save(expected, folder / "openai_dvae/expected.pt")

model = clip.model.CLIP(16, 32, 1, 64, 16, 8, 50, 64, 1, 1).eval()  # width 64: its heads are 64 wide
sizes = {"input_resolution": 32, "context_length": 8, "vocab_size": 50}
vars(model).pop("context_length", None)
vars(model).pop("vocab_size", None)
for name, size in sizes.items():
    model.register_buffer(name, torch.tensor(size))
archive = torch.jit.trace(model, (torch.rand(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.long)))
clip.model.convert_weights(model)
types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
for name, parameter in archive.named_parameters():
    parameter.data = parameter.data.to(types[name])  # halves and floats mixed, as in OpenAI's files
archive.save(str(folder / "clip_archive.pt"))
torch.save(dict(archive.state_dict()), folder / "clip_archive_state.pt")
