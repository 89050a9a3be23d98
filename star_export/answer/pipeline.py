"""A loaded bundle: a picture and a prompt in, text out."""

from collections.abc import Sequence
from pathlib import Path

from star_export.answer.generation import Generation
from star_export.answer.request import Request
from star_export.answer.sampling import Sampling
from star_export.answer.steps import Steps
from star_export.answer.transcript import Transcript, check_stop
from star_export.bundle import PREPROCESSOR, TOKENIZER, Bundle, open_bundle
from star_export.engines import Runtime, open_session
from star_export.engines.session import Closing, Session
from star_export.errors import BundleError, InputError, SettingsError, option
from star_export.preprocessing import (
    PreparedImage,
    TokenizedPrompt,
    load_image,
    prepare,
    read_preprocessing,
    read_tokenizer,
    render,
    tokenize,
)
from star_export.preprocessing.conversation import Prompt
from star_export.preprocessing.images import ImageInput
from star_export.preprocessing.prompts import end_token_ids
from star_export.specs import ExportSpec, ImageLimits, check_keep


class Pipeline(Closing):
    """A loaded bundle, until it is closed.

    Example:
        >>> with star_export.load("bundle") as pipeline:
        ...     for piece in pipeline.generate("dog.png", "What is this?"):
        ...         print(piece, end="", flush=True)

    Args:
        bundle: An opened bundle.
        session: Its graphs, loaded by a backend.

    Raises:
        BundleError: If tokenizer or preprocessing parameters cannot be read.
    """

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self.bundle, self.session, self.steps = bundle, session, Steps(session)
        self.spec: ExportSpec = bundle.spec
        parameters = read_preprocessing(bundle.path(PREPROCESSOR), self.spec.model)
        self.image_spec, self.prompt_spec = parameters.image, parameters.prompt
        self.tokenizer = read_tokenizer(bundle.path(TOKENIZER), self.prompt_spec)
        try:
            self._added_ends = end_token_ids(self.prompt_spec.end_tokens, self.tokenizer)
        except SettingsError as error:
            raise BundleError(f"{bundle.path(PREPROCESSOR)} is damaged: {error.marked}") from error

    def close(self) -> None:
        """Close the session: graphs, weights and KV caches are let go, a GPU's memory is freed."""
        self.session.close()

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the model's own, and those that the build added."""
        return (*self.spec.model.eos_token_ids, *self._added_ends)

    def generate(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: Prompt,
        *,
        keep: int | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        end_tokens: Sequence[str] = (),
    ) -> Generation:
        """Answer a question about pictures.

        Args:
            image: A path, encoded bytes or a PIL image, or several of them.
            prompt: The question; or a whole prompt that contains ``<image>``; or a conversation that ends
                with the question: messages as transformers' chat templates take them. The pictures
                open its first question, if no part ``{"type": "image"}`` says where they stand.
            keep: Visual tokens of all pictures after the last stage; the bundle's own by default.
            max_new_tokens: Tokens to generate at most; what the caches hold by default.
            sampling: Greedy by default.
            stop: Strings that end the answer and are no part of it.
            end_tokens: Tokens that end it, besides the bundle's own, such as ``<|eot_id|>``.

        Returns:
            An iterator over pieces of text, whose :meth:`Generation.result` is the whole.
            One at a time, since the KV caches are shared: one that is not finished when the
            next begins raises InputError when it goes on, and one whose logits are NaN or infinite
            raises NonFiniteError; the next is not affected.

        Raises:
            InputError: If the picture or the prompt cannot be used.
            SettingsError: If a number is out of range, or an end token is unknown.
        """
        request = self.request(
            image,
            prompt,
            keep=keep,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            end_tokens=end_tokens,
        )
        return self.answer(request)

    def request(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: Prompt,
        *,
        keep: int | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        end_tokens: Sequence[str] = (),
    ) -> Request:
        """Check and prepare what :meth:`generate` or a scheduler runs; see there. Any thread may."""
        pictures = self.prepare(image)
        limit = self.spec.max_new_tokens if max_new_tokens is None else max_new_tokens
        if not 1 <= limit <= self.spec.max_new_tokens:
            raise SettingsError(
                f"{option('max_new_tokens')} must be from 1 to {self.spec.max_new_tokens}, got {limit}; "
                f"for more, build the bundle with a larger {option('max_new_tokens')}"
            )
        return Request(
            keep=self.budget(keep, pictures),
            tokens=self.tokenize(prompt, pictures),
            images=pictures,
            max_new_tokens=limit,
            sampling=sampling or Sampling(),
            stop=check_stop(stop),
            end_token_ids=end_token_ids(end_tokens, self.tokenizer),
        )

    def answer(self, request: Request) -> Generation:
        """Answer a prepared request; see :meth:`generate`."""
        return Generation(self.steps, request, self.transcript(request))

    def transcript(self, request: Request) -> Transcript:
        """An empty answer to a request."""
        return Transcript(
            self.tokenizer,
            eos_token_ids=(*self.end_token_ids, *request.end_token_ids),
            max_new_tokens=request.max_new_tokens,
            stop=request.stop,
        )

    def budget(self, keep: int | None, images: Sequence[PreparedImage] = ()) -> int:
        """Visual tokens that the last layers see of these pictures, or of the largest ones.

        Never more than enter the decoder.

        Raises:
            SettingsError: If the bundle cannot serve ``keep``.
        """
        entering = sum(self.entering(images)) or self.spec.max_visual_tokens
        if not self.spec.decoder_stages:
            if keep is not None:
                raise SettingsError(
                    f"this bundle was built with {option('prune', False)}; "
                    f"{option('keep')} has no meaning for it"
                )
            return entering
        if keep is None:
            tokens = sum(image.packing.tokens for image in images)
            keep = self.spec.default_keep(tokens or self.spec.images.max_image_tokens)
        check_keep(self.spec.schedule, keep)
        return self.spec.budgets(keep, entering=entering)[-1]

    def entering(self, images: Sequence[PreparedImage]) -> list[int]:
        """Visual tokens of each picture when the decoder starts."""
        return [self.spec.entering(image.packing.tokens, image.packing.newlines) for image in images]

    def prepare(self, image: ImageInput | Sequence[ImageInput]) -> tuple[PreparedImage, ...]:
        """Pictures as the vision graph takes them. Any thread may.

        Raises:
            InputError: If one cannot be read, or there are more, or larger ones, than the bundle takes.
        """
        sources: list[ImageInput] = list(image) if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]
        limits = self.spec.images
        if not 1 <= len(sources) <= limits.max_images:
            raise InputError(
                f"this bundle takes 1 to {limits.max_images} pictures, got {len(sources)}; "
                f"for more, build it again with {option('max_images', max(1, len(sources)))}"
            )
        prepared = prepare([load_image(source) for source in sources], self.image_spec, self.spec.model)
        check_limits(prepared, limits)
        return prepared

    def tokenize(
        self,
        prompt: Prompt,
        images: Sequence[PreparedImage],
        *,
        tokens_per_image: Sequence[int] | None = None,
    ) -> TokenizedPrompt:
        """Token ids and positions of a prompt about some pictures.

        Args:
            prompt: As :meth:`generate` takes it.
            images: The pictures.
            tokens_per_image: Visual tokens to make room for; what stage 1 keeps of each by default.

        Raises:
            InputError: If it is empty, too long, or has not one place for each picture.
        """
        text = render(prompt, self.prompt_spec, images=len(images))
        counts = self.entering(images) if tokens_per_image is None else tokens_per_image
        tokens = tokenize(text, self.tokenizer, self.prompt_spec, tokens_per_image=counts)
        if (largest := int(tokens.input_ids.max())) >= self.spec.model.text.vocab_size:
            raise BundleError(
                f"{self.bundle.path(TOKENIZER)} gives token {largest}, the model has "
                f"{self.spec.model.text.vocab_size}; build the bundle again"
            )
        if tokens.text_tokens > self.spec.max_text_tokens:
            raise InputError(
                f"the prompt has {tokens.text_tokens} text tokens, "
                f"this bundle has room for {self.spec.max_text_tokens}; "
                f"shorten it or rebuild with {option('max_text_tokens', tokens.text_tokens)}"
            )
        return tokens


def load(
    folder: str | Path,
    *,
    backend: str = "onnxruntime",
    threads: int | None = None,
    plugin_library: Path | None = None,
    verify: bool = False,
) -> Pipeline:
    """Open a bundle, ready to answer.

    Args:
        folder: A bundle made by ``star-export build``.
        backend: What runs the graphs; see :class:`star_export.engines.Runtime` for this and the next two.
        threads: CPU threads; all cores by default.
        plugin_library: The plugin library of TensorRT engines that were built with one.
        verify: Hash every file first, the weights too.

    Raises:
        SettingsError: If the backend is unknown, or its engines need a plugin library.
        BundleError, PlatformError: As :func:`open_pipeline`.
    """
    runtime = Runtime(backend=backend, threads=threads, plugin_library=plugin_library)
    return open_pipeline(folder, runtime, verify=verify)


def open_pipeline(folder: str | Path, runtime: Runtime, *, verify: bool = False) -> Pipeline:
    """:func:`load` for those who were given a runtime.

    Raises:
        BundleError: If the bundle is missing, damaged, unsafe or too new, or the backend cannot run it.
        SettingsError: If its engines need a plugin library that is not given.
        PlatformError: If this machine lacks what the backend needs.
    """
    bundle = open_bundle(folder, verify=verify)
    return Pipeline(bundle, open_session(bundle, runtime))


def check_limits(images: Sequence[PreparedImage], limits: ImageLimits) -> None:
    """Refuse pictures that a bundle has no room for.

    Raises:
        InputError: With the number to build for.
    """
    tiles, tokens = max(len(i.pixels) for i in images), sum(i.packing.tokens for i in images)
    if tiles > limits.max_tiles:
        raise InputError(
            f"a picture has {tiles} tiles, this bundle takes {limits.max_tiles}; "
            f"scale it down or build with {option('max_tiles', tiles)}"
        )
    if tokens > limits.max_image_tokens:
        raise InputError(
            f"the pictures have {tokens} visual tokens, this bundle has room for {limits.max_image_tokens}; "
            f"scale them down or build with {option('max_image_tokens', tokens)}"
        )
