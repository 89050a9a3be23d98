"""A loaded bundle: a picture and a prompt in, text out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from star_export.answer.chat import Chat
from star_export.answer.generation import Generation, answer_request
from star_export.answer.grammar import Schema
from star_export.answer.request import Request, Requests
from star_export.answer.sampling import Sampling
from star_export.answer.steps import Steps
from star_export.bundle import Bundle, open_bundle
from star_export.engines import Runtime, open_session
from star_export.engines.session import Closing, Session
from star_export.preprocessing.conversation import Prompt, Turn
from star_export.preprocessing.images import ImageInput
from star_export.specs import Keep


class Pipeline(Requests, Closing):
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
        super().__init__(bundle)
        self.session, self.steps = session, Steps(session)

    def close(self) -> None:
        """Close the session: graphs, weights and KV caches are let go, a GPU's memory is freed."""
        self.session.close()

    def generate(
        self,
        image: ImageInput | Sequence[ImageInput],
        prompt: Prompt,
        *,
        keep: Keep | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        end_tokens: Sequence[str] = (),
        reprune: bool = True,
        schema: Schema | None = None,
    ) -> Generation:
        """Answer a question about pictures.

        Args:
            image: A path, encoded bytes or a PIL image, or several of them.
            prompt: The question; or a whole prompt that contains ``<image>``; or a conversation that ends
                with the question: messages as transformers' chat templates take them. The pictures
                open its first question, if no part ``{"type": "image"}`` says where they stand.
            keep: Visual tokens of all pictures after the last stage, or a budget for each stage, the first of
                each picture where it is before the decoder; the bundle's own by default.
            max_new_tokens: Tokens to generate at most; what the caches hold by default.
            sampling: Greedy by default.
            stop: Strings that end the answer and are no part of it.
            end_tokens: Tokens that end it, besides the bundle's own, such as ``<|eot_id|>``.
            reprune: Let the last question of a conversation choose which visual tokens stay; else the one
                does that brought the last picture, as in :meth:`chat`.
            schema: A JSON schema, as JSON or as values of it: the answer is JSON that it describes, or begins
                such JSON if ``max_new_tokens`` or ``stop`` cuts it.

        Returns:
            An iterator over pieces of text, whose :meth:`Generation.result` is the whole.
            One at a time, since the KV caches are shared: one that is not finished when the
            next begins raises InputError when it goes on, and one whose logits are NaN or infinite
            raises NonFiniteError; the next is not affected.

        Raises:
            InputError: If the picture, the prompt or the schema cannot be used.
            SettingsError: If a number is out of range, or an end token is unknown.
            PlatformError: If a schema is given and llguidance is not installed.
        """
        request = self.request(
            image,
            prompt,
            keep=keep,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            end_tokens=end_tokens,
            reprune=reprune,
            schema=schema,
        )
        return self.answer(request)

    def answer(self, request: Request) -> Generation:
        """Answer a prepared request; see :meth:`generate`."""
        return Generation(answer_request(self.steps, request, self.transcript(request)))

    def chat(
        self,
        messages: Sequence[Turn | Mapping[str, Any]] = (),
        *,
        images: ImageInput | Sequence[ImageInput] = (),
        keep: Keep | None = None,
        reprune: bool = False,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        end_tokens: Sequence[str] = (),
    ) -> Chat:
        """Begin a conversation, or take one up again; its KV caches are its own and stay between turns.

        Args:
            messages: What was said, up to an answer; :attr:`Chat.messages` of an earlier one.
            images: The pictures in these messages; without messages, those of the first question.
            keep: Budgets, as :meth:`generate` takes them; the bundle's own by default.
            reprune: Decide anew at every question which visual tokens stay.
            max_new_tokens: Tokens of an answer at most; what the caches hold by default.
            sampling: Greedy by default.
            end_tokens: Tokens that end an answer, besides the bundle's own.

        Raises:
            InputError: If messages or pictures cannot be used.
            SettingsError: If a number is out of range, or an end token is unknown.
        """
        return Chat(
            self,
            self.steps,
            messages,
            images=images,
            keep=keep,
            reprune=reprune,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            end_tokens=end_tokens,
        )


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
