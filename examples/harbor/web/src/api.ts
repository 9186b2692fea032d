// Talks HTTP to the service. Reading calls are repeated after a lost connection: the instance that held it may be gone, the
// next connection reaches another one. A refused call raises ApiError with the service's own words.

import type { ConfigAnswer, SessionAnswer, Share, StatusAnswer, TrackAnswer, TrailsAnswer, VesselsAnswer } from "./contract";

const TIMEOUT_MS = 8_000;
const RETRIES = 4;
const RETRY_MS = 250;

export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export class Api {
  token: string | null = null;

  config = (): Promise<ConfigAnswer> => this.read("/api/config");
  status = (): Promise<StatusAnswer> => this.read("/api/status");
  vessels = (): Promise<VesselsAnswer> => this.read("/api/vessels");
  trails = (): Promise<TrailsAnswer> => this.read("/api/trails");
  track = (id: string): Promise<TrackAnswer> => this.read(`/api/vessels/${encodeURIComponent(id)}/track`);
  shares = (): Promise<{ shares: Share[] }> => this.read("/api/shares");
  demo = (): Promise<SessionAnswer> => this.send("POST", "/api/session/demo");
  signIn = (email: string, password: string): Promise<SessionAnswer> => this.send("POST", "/api/session", { email, password });
  signUp = (email: string, name: string, password: string): Promise<SessionAnswer> =>
    this.send("POST", "/api/accounts", { email, name, password });
  renew = (): Promise<SessionAnswer> => this.send("POST", "/api/session/renew");
  share = (viewer: string): Promise<unknown> => this.send("POST", "/api/shares", { viewer });
  unshare = (share: Share): Promise<unknown> => this.send("DELETE", "/api/shares", share);

  private async read<T>(path: string): Promise<T> {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await this.send<T>("GET", path);
      } catch (error) {
        const lasting = error instanceof ApiError && error.status !== 503;
        if (lasting || attempt === RETRIES) throw error;
        await new Promise((done) => setTimeout(done, RETRY_MS * 2 ** attempt));
      }
    }
  }

  private async send<T>(method: string, path: string, body?: unknown): Promise<T> {
    const headers: Record<string, string> = { accept: "application/json" };
    if (this.token !== null) headers["authorization"] = `Bearer ${this.token}`;
    const request: RequestInit = { method, headers, signal: AbortSignal.timeout(TIMEOUT_MS) };
    if (body !== undefined) {
      headers["content-type"] = "application/json";
      request.body = JSON.stringify(body);
    }
    const response = await fetch(path, request);
    if (response.status === 204) return undefined as T;
    const answer: unknown = await response.json().catch(() => null);
    if (!response.ok) throw new ApiError(response.status, messageOf(answer) ?? `The service answered ${response.status}.`);
    return answer as T;
  }
}

function messageOf(answer: unknown): string | null {
  if (typeof answer !== "object" || answer === null || !("error" in answer)) return null;
  const { error } = answer as { error: { message?: unknown } };
  return typeof error?.message === "string" ? error.message : null;
}
