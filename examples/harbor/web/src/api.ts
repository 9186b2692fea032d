// Talks HTTP to the service. Calls that may be repeated are repeated after a lost connection: the instance that held it may be gone, the
// next connection reaches another one. A refused call raises ApiError with the service's own words.

import type { AlertsAnswer, AreaInfo, ConfigAnswer, SessionAnswer, Share, StatusAnswer, TrackAnswer, TrailsAnswer, VesselsAnswer } from "./contract";

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
  areas = (): Promise<{ areas: AreaInfo[] }> => this.read("/api/areas");
  alerts = (before: number | null = null): Promise<AlertsAnswer> =>
    this.read(before === null ? "/api/alerts" : `/api/alerts?before=${before}`);
  /** The service takes the same area for the same one, and so does a change: they may be repeated. */
  drawArea = (area: Omit<AreaInfo, "id">): Promise<AreaInfo> => this.repeat("POST", "/api/areas", area);
  changeArea = (id: number, change: { name?: string; colour?: string }): Promise<AreaInfo> =>
    this.repeat("PATCH", `/api/areas/${id}`, change);
  deleteArea = (id: number): Promise<void> => this.repeat("DELETE", `/api/areas/${id}`);
  demo = (): Promise<SessionAnswer> => this.send("POST", "/api/session/demo");
  signIn = (email: string, password: string): Promise<SessionAnswer> => this.send("POST", "/api/session", { email, password });
  signUp = (email: string, name: string, password: string): Promise<SessionAnswer> =>
    this.send("POST", "/api/accounts", { email, name, password });
  renew = (): Promise<SessionAnswer> => this.send("POST", "/api/session/renew");
  share = (viewer: string): Promise<unknown> => this.send("POST", "/api/shares", { viewer });
  unshare = (share: Share): Promise<unknown> => this.send("DELETE", "/api/shares", share);

  private read<T>(path: string): Promise<T> {
    return this.repeat("GET", path);
  }

  private async repeat<T>(method: string, path: string, body?: unknown): Promise<T> {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await this.send<T>(method, path, body);
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
