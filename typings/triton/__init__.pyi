# What this project uses of Triton, which torch's CUDA builds install. Its own types do not cover kernels.
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, overload

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

F = TypeVar("F", bound=Callable[..., object])

class KernelParam:
    name: str
    is_constexpr: bool

class JITFunction:
    __name__: str
    params: Sequence[KernelParam]
    device_caches: Mapping[int, tuple[Mapping[str, CompiledKernel], object]]
    def run(self, *, grid: tuple[int, int, int], warmup: bool, **arguments: object) -> CompiledKernel: ...
    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., object]: ...

@overload
def jit(function: F, /) -> F: ...
@overload
def jit(*, do_not_specialize: Sequence[str]) -> Callable[[Callable[..., None]], JITFunction]: ...
def compile(source: ASTSource, *, target: GPUTarget, options: Mapping[str, int]) -> CompiledKernel: ...
