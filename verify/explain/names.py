"""A name that was probably meant, for a package that the index does not have."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from packaging.utils import canonicalize_name

# what people write because they import it so
IMPORTED_AS = {
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "flash-attention": "flash-attn",
    "google-protobuf": "protobuf",
    "huggingface": "huggingface-hub",
    "jwt": "pyjwt",
    "pil": "pillow",
    "pytorch-cuda": "torch",
    "skimage": "scikit-image",
    "skopt": "scikit-optimize",
    "umap": "umap-learn",
    "usb": "pyusb",
    "yaml": "pyyaml",
}

# packages beside which zo2 is used, apart from those of the matrix's rows
KNOWN = """
aiohttp bitsandbytes black click deepspeed diffusers einops evaluate fastapi faiss-cpu flash-attn
gradio gguf httpx hydra-core ipykernel ipython jinja2 joblib jsonschema jupyter jupyterlab keras
langchain lightning llama-cpp-python loguru matplotlib mlflow mypy nltk notebook numba omegaconf
onnx onnxruntime openai opencv-python optimum packaging pandas pillow plotly polars protobuf psutil
pyarrow pydantic pytest pytorch-lightning pyyaml ray regex requests rich rouge-score ruff sacrebleu
sacremoses safetensors scikit-image scikit-learn scipy seaborn sentence-transformers sentencepiece
setuptools spacy sqlalchemy streamlit sympy tensorboard tensorflow tiktoken timm torchaudio
torchmetrics torchtext torchvision tqdm triton typer urllib3 uvicorn vllm wandb wheel xformers
"""


def nearest_names(name: str, others: Iterable[str]) -> list[str]:
    """The best guesses at what ``name`` should be, best first; often one, sometimes none."""
    wanted = canonicalize_name(name)
    if wanted in IMPORTED_AS:
        return [IMPORTED_AS[wanted]]
    candidates = {canonicalize_name(other) for other in (*others, *KNOWN.split())} - {wanted}
    spelled = {candidate.replace("-", ""): candidate for candidate in sorted(candidates)}
    found = get_close_matches(wanted.replace("-", ""), spelled, n=3, cutoff=0.75)
    return [spelled[match] for match in found]
