"""The one door to transformers and PEFT, which import whatever else is installed beside them.

Both ask which of some hundred optional packages there are (torchvision, bitsandbytes, scikit-learn,
...) and import those. A package that is broken, torchvision of another torch for one, would take
down a server that never needed it. So the packages are hidden while the two are imported; both keep
the answer. All other modules import what they need of the two from here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast

from agent.process.optional import needing

_NAMES = """
    IPython Levenshtein PIL aim aiohttp amdsmi apex apollo_torch aqlm auto_round autoawq av awq
    bitsandbytes blobfile boto3 bs4 causal_conv1d clearml coloredlogs comet_ml
    compressed_tensors cv2 datasets decord deepspeed diffusers dvclive eetq einops essentia
    executorch faiss fast_hadamard_transform fastai fastapi fbgemm_gpu fla flash_attn
    flash_attn_3 flash_attn_interface flax flute fouroversix fp_quant g2p_en galore_torch gguf
    gptqmodel grokadamw habana_frameworks hqq intel_extension_for_pytorch
    intel_transformer_engine jax jieba kenlm kernels libcst librosa liger_kernel lomo_optim
    mamba_ssm mambapy matplotlib megatron mistral_common mlflow mlx msamp multipart nagisa
    natten neural_compressor nltk nncf num2words numba onnx onnxruntime onnxscript openai
    openvino optimi optimum pandas phonemizer pretty_midi py3nvml pycocotools
    pyctcdecode pydantic pytesseract pytorch_quantization quark qutlass rhoknp
    rjieba sacremoses sagemaker schedulefree scipy sentencepiece seqio sinq sklearn
    smdistributed soundfile soxr soynlp spacy spqr_quant sudachipy swanlab tensorboard
    tensorboardX tensorflow tf_keras tiktoken timm torch_mlu torch_musa torch_neuronx torch_npu
    torch_sdaa torch_tensorrt torch_xla torchao torchaudio torchcodec torchdata torchdistx
    torchvision trackio transformer_engine triton trl unsloth uroman uvicorn vptq wandb xformers
    xlstm yt_dlp
"""
OPTIONAL = frozenset(_NAMES.split())


@contextmanager
def _hidden() -> Iterator[None]:
    """Let the optional packages look as if they were not installed."""
    # None is what Python itself takes for "there is no such module".
    modules = cast(dict[str, ModuleType | None], sys.modules)
    hidden = [name for name in OPTIONAL if name not in modules]
    modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            if modules.get(name, sys) is None:
                del modules[name]


def _settle_what_is_there(module: ModuleType) -> None:
    """Have PEFT answer now, and remember, what it would ask once an adapter is attached."""
    for name, ask in vars(module).items():
        if name.startswith("is_") and hasattr(ask, "cache_info"):
            ask()


with _hidden(), needing("server"):
    import peft.import_utils
    from huggingface_hub.errors import StrictDataclassError
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
    from transformers import LlamaConfig, LlamaModel
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    _settle_what_is_there(peft.import_utils)

__all__ = [
    "LlamaConfig",
    "LlamaModel",
    "LlamaRotaryEmbedding",
    "LoraConfig",
    "PeftModel",
    "StrictDataclassError",
    "check_target_module_exists",
    "get_peft_model",
    "get_peft_model_state_dict",
    "set_peft_model_state_dict",
]
