"""Logits of a GGUF file as llama.cpp computes them, by its C interface in the library of the package xllamacpp.

The package itself has no call for the logits of given token ids. The library exports llama.cpp's own functions, which
take structures by value: a structure longer than the function's is read as far as it goes (System V calls), and the
fields that are set here are known by the values that they have by default, which is checked.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOAT32, _FLOAT16 = 0, 1

#: Fields of llama_context_params of version 2026.10.11549: offset, type and default.
_FIELDS = {
    "n_ctx": (0, "I", 512),
    "n_batch": (4, "I", 2048),
    "n_ubatch": (8, "I", 512),
    "n_threads": (28, "i", 4),
    "n_threads_batch": (32, "i", 4),
    "flash_attn_type": (52, "i", -1),
    "type_k": (104, "i", _FLOAT16),
    "type_v": (108, "i", _FLOAT16),
}


class _Parameters(ctypes.Structure):
    """More bytes than any structure of parameters has."""

    _fields_ = [("bytes", ctypes.c_uint8 * 1024)]


class _Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


_Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def _library() -> Any:
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_model_default_params", _Parameters, []),
        ("llama_context_default_params", _Parameters, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, _Parameters]),
        ("llama_init_from_model", pointer, [pointer, _Parameters]),
        ("llama_model_get_vocab", pointer, [pointer]),
        ("llama_vocab_n_tokens", number, [pointer]),
        ("llama_model_n_params", ctypes.c_uint64, [pointer]),
        ("llama_model_n_layer", number, [pointer]),
        ("llama_batch_init", _Batch, [number, number, number]),
        ("llama_batch_free", None, [_Batch]),
        ("llama_get_memory", pointer, [pointer]),
        ("llama_memory_clear", None, [pointer, ctypes.c_bool]),
        ("llama_decode", number, [pointer, _Batch]),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), [pointer]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("llama_log_set", None, [_Log, pointer]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Engine:
    """A model in llama.cpp, on the processor, with one thread.

    Args:
        file: in GGUF.
        length: of the longest row.
        exact: without flash attention and with keys and values kept in float32; else with llama.cpp's defaults.

    Raises:
        RuntimeError: llama.cpp does not load the file; the message is its own.
    """

    def __init__(self, file: Path, length: int, exact: bool = True) -> None:
        self._library, self._said = _library(), list[str]()
        self._log = _Log(lambda level, text, _: self._said.append(text.decode(errors="replace")))
        self._library.llama_log_set(self._log, None)
        self._model = self._library.llama_model_load_from_file(
            str(file).encode(), self._library.llama_model_default_params()
        )
        if not self._model:
            raise RuntimeError(self._errors())
        wanted = {"n_ctx": length, "n_batch": length, "n_ubatch": length, "n_threads": 1, "n_threads_batch": 1}
        if exact:
            wanted |= {"flash_attn_type": 0, "type_k": _FLOAT32, "type_v": _FLOAT32}
        self._context = self._library.llama_init_from_model(self._model, self._parameters(wanted))
        if not self._context:
            raise RuntimeError(self._errors())
        self.vocabulary = self._library.llama_vocab_n_tokens(self._library.llama_model_get_vocab(self._model))
        self.parameters = self._library.llama_model_n_params(self._model)
        self.layers = self._library.llama_model_n_layer(self._model)

    def _parameters(self, wanted: dict[str, int]) -> _Parameters:
        found = self._library.llama_context_default_params()
        for name, (offset, of, default) in _FIELDS.items():
            if (there := struct.unpack_from(of, found.bytes, offset)[0]) != default:
                raise RuntimeError(
                    f"expected {default} as default of {name}, got {there}: llama_context_params is another"
                )
            struct.pack_into(of, found.bytes, offset, wanted.get(name, default))
        return found

    def _errors(self) -> str:
        lines = "".join(self._said).splitlines()
        return next((line for line in lines if "error" in line), lines[-1] if lines else "no message")

    def logits(self, ids: Sequence[int], at_once: int | None = None) -> NDArray[np.float32]:
        """Of a row of token ids from an empty cache, ``[len(ids), vocabulary]``, some at once; all when not given."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        size = at_once or len(ids)
        return np.concatenate([self._decode(ids[start : start + size], start) for start in range(0, len(ids), size)])

    def _decode(self, ids: Sequence[int], start: int) -> NDArray[np.float32]:
        library, count = self._library, len(ids)
        batch = library.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for place, number in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = number, start + place, 1
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = 0
        status = library.llama_decode(self._context, batch)
        library.llama_batch_free(batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}; {self._errors()}")
        found = np.ctypeslib.as_array(library.llama_get_logits(self._context), (count, self.vocabulary))
        return found.copy()

    def ids(self, text: str) -> list[int]:
        """Of a text by the file's own tokenizer, with what that begins a text with."""
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        vocabulary = ctypes.c_void_p(self._library.llama_model_get_vocab(self._model))
        count = self._library.llama_tokenize(
            vocabulary,
            raw,
            ctypes.c_int32(len(raw)),
            room,
            ctypes.c_int32(len(room)),
            ctypes.c_bool(True),
            ctypes.c_bool(True),
        )
        return [*room[:count]]

    def close(self) -> None:
        """Let model and context go."""
        self._library.llama_free(self._context)
        self._library.llama_model_free(self._model)


def system() -> str:
    """What of the processor this build of llama.cpp uses."""
    import xllamacpp

    return str(xllamacpp.get_system_info())
