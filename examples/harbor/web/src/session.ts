// Who is signed in. Tokens live for minutes and are renewed before they end; the newest one is kept for this tab only.

import { type Api, ApiError } from "./api";
import type { SessionAnswer } from "./contract";

const KEY = "harbor-session";
/** Renew when this share of a token's life has passed. */
const RENEW_SHARE = 0.7;

export type Account = SessionAnswer["account"];

export class Session {
  account: Account | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly api: Api,
    private readonly changed: (token: string | null, sameAccount: boolean) => void,
    private readonly ended: (account: Account | null) => void,
  ) {}

  get token(): string | null {
    return this.api.token;
  }

  /** Takes up the session of this tab, if the service still accepts it. */
  async resume(): Promise<boolean> {
    const kept = sessionStorage.getItem(KEY);
    if (kept === null) return false;
    this.api.token = kept;
    return this.renew();
  }

  begin(answer: SessionAnswer): void {
    const sameAccount = this.account?.email === answer.account.email;
    this.api.token = answer.token;
    this.account = answer.account;
    sessionStorage.setItem(KEY, answer.token);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.renew(), answer.expires_in_s * RENEW_SHARE * 1_000);
    this.changed(answer.token, sameAccount);
  }

  /** The reader leaves. */
  leave(): void {
    this.forget();
    this.changed(null, false);
  }

  /** The service does not accept the session any more. */
  end(): void {
    const account = this.account;
    this.forget();
    this.ended(account);
  }

  private forget(): void {
    clearTimeout(this.timer);
    sessionStorage.removeItem(KEY);
    this.api.token = null;
    this.account = null;
  }

  /** A service that cannot be reached keeps the session: the connection shows its own state. */
  private async renew(): Promise<boolean> {
    try {
      this.begin(await this.api.renew());
      return true;
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) {
        this.end();
        return false;
      }
      clearTimeout(this.timer);
      this.timer = setTimeout(() => void this.renew(), 2_000);
      return this.account !== null;
    }
  }
}
