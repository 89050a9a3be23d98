// The server's API: its models, and answers that stream.

/** What the server said when it refused. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** One server. `askKey(reason)` is asked for a key after a 401; it resolves to "" where there is none. */
export class Server {
  #key = "";
  #askKey;

  constructor(askKey) {
    this.#askKey = askKey;
  }

  /** The models: id, and under `star` what the bundle keeps. */
  async models() {
    return (await (await this.#fetch("v1/models")).json()).data;
  }

  /**
   * Chunks of a chat completion as they come; `[DONE]` ends them.
   * Throws ApiError if the server refuses, at once or in the middle; AbortError after `signal`.
   */
  async *stream(body, signal) {
    const response = await this.#fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(response.status, chunk.error.message);
      yield chunk;
    }
    broken();
  }

  async #fetch(path, options = {}) {
    for (;;) {
      const headers = { ...options.headers };
      if (this.#key) headers.Authorization = `Bearer ${this.#key}`;
      const response = await reach(path, { ...options, headers, cache: "no-store" });
      if (response.ok) return response;
      const message = await reason(response);
      if (response.status !== 401) throw new ApiError(response.status, message);
      this.#key = await this.#askKey(message);
      if (!this.#key) throw new ApiError(401, message);
    }
  }
}

/** As `fetch`, whose words for a server that is gone differ from browser to browser. */
function reach(path, options) {
  return fetch(path, options).catch((error) => broken(error, "the server cannot be reached"));
}

function broken(error, message = "the answer broke off: the connection was closed") {
  throw error?.name === "AbortError" ? error : new ApiError(0, message);
}

/** The data of each server-sent event. */
async function* events(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read().catch(broken);
    if (done) return;
    const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered ${response.status} ${response.statusText}`.trim();
  }
}
