// REST. Whatever goes wrong is an `ApiError` with the service's own sentence.

export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }

  // Worth trying again by itself: nothing was wrong with what was asked.
  get passing() {
    return this.status === 0 || this.status === 503 || this.status === 502;
  }
}

const TIMEOUT_MS = 10_000;

export async function ask(method, path, { body, token } = {}) {
  const headers = { accept: "application/json" };
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let answer;
  try {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal });
  } catch {
    throw new ApiError(0, "offline", "The service cannot be reached. Please try again.");
  }
  const said = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (answer.ok) return said;
  const error = said?.error ?? { code: "failed", message: `The service answered ${answer.status}.` };
  throw new ApiError(answer.status, error.code, error.message);
}
