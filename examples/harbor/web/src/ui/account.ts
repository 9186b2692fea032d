// Signing in and up, the demo viewer, and sharing: who else may see one's vessels.

import { type Api, ApiError } from "../api";
import type { SessionAnswer } from "../contract";
import type { Session } from "../session";
import { byId, el } from "./dom";
import { popover } from "./popover";

export class AccountView {
  private readonly dialog = byId<HTMLDialogElement>("dialog");
  private readonly panel = byId("account-panel");
  private readonly close: () => void;
  demoOffered = false;

  constructor(
    private readonly api: Api,
    private readonly session: Session,
  ) {
    this.close = popover(byId("account"), this.panel, () => this.fillPanel());
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog && this.session.account !== null) this.dialog.close();
    });
    this.dialog.addEventListener("cancel", (event) => {
      if (this.session.account === null) event.preventDefault(); // there is nothing to see without a session
    });
  }

  update(): void {
    const account = this.session.account;
    byId("account-name").textContent = account === null ? "Sign in" : account.name;
    byId("account").classList.toggle("demo", account?.demo ?? false);
    if (account !== null && this.dialog.open) this.dialog.close();
  }

  /** The dialog to sign in, or to make an account. */
  ask(newAccount = false, message = ""): void {
    const title = el("h2", { id: "dialog-title" }, newAccount ? "Make an account" : "Sign in to Harbor");
    const email = field("Email", { type: "email", name: "email", autocomplete: "username", required: "" });
    const name = field("Name", { type: "text", name: "name", autocomplete: "name", required: "", maxlength: "80" });
    const password = field("Password", { type: "password", name: "password", autocomplete: newAccount ? "new-password" : "current-password", required: "", minlength: "10" });
    const error = el("p", { class: "form-error", role: "alert" }, message);
    const submit = el("button", { type: "submit", class: "primary" }, newAccount ? "Make the account" : "Sign in");
    const form = el("form", { method: "dialog" }, title, email, ...(newAccount ? [name] : []), password, error, submit, this.otherWays(newAccount));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const data = new FormData(form);
      const text = (key: string): string => String(data.get(key) ?? "");
      void this.enter(error, submit, () =>
        newAccount ? this.api.signUp(text("email"), text("name"), text("password")) : this.api.signIn(text("email"), text("password")),
      );
    });
    this.open(form);
  }

  private otherWays(newAccount: boolean): HTMLElement {
    const other = el("button", { type: "button", class: "link" }, newAccount ? "I have an account" : "Make an account");
    other.addEventListener("click", () => this.ask(!newAccount));
    const ways = el("p", { class: "form-ways" }, other);
    if (this.demoOffered) {
      const demo = el("button", { type: "button", class: "link" }, "Look around as the demo viewer");
      demo.addEventListener("click", () => void this.enter(el("p"), demo, () => this.api.demo()));
      ways.append(demo);
    }
    return ways;
  }

  private async enter(error: HTMLElement, button: HTMLButtonElement, call: () => Promise<SessionAnswer>): Promise<void> {
    button.disabled = true;
    try {
      const answer = await call();
      this.dialog.close();
      this.session.begin(answer);
    } catch (cause) {
      error.textContent = cause instanceof ApiError ? cause.message : "The service cannot be reached. Please try again.";
    } finally {
      button.disabled = false;
    }
  }

  private fillPanel(): void {
    const account = this.session.account;
    if (account === null) {
      this.close();
      this.ask();
      return;
    }
    const leave = el("button", { type: "button", class: "secondary" }, account.demo ? "Sign in" : "Sign out");
    leave.addEventListener("click", () => {
      this.close();
      if (account.demo) this.ask();
      else this.session.leave();
    });
    const about = account.demo ? "You look around as the demo viewer: one fleet is shared with this account, read only." : account.email;
    const children: Node[] = [el("h2", {}, account.name), el("p", { class: "muted" }, about)];
    if (!account.demo) {
      const share = el("button", { type: "button", class: "secondary" }, "Share my vessels …");
      share.addEventListener("click", () => {
        this.close();
        void this.askSharing();
      });
      children.push(share);
    }
    this.panel.replaceChildren(...children, leave);
  }

  private async askSharing(): Promise<void> {
    const list = el("ul", { class: "shares" });
    const error = el("p", { class: "form-error", role: "alert" });
    const email = field("Share all my vessels with (email)", { type: "email", name: "viewer", required: "", autocomplete: "off" });
    const form = el("form", { method: "dialog" }, el("h2", { id: "dialog-title" }, "Sharing"), list, email, error, el("button", { type: "submit", class: "primary" }, "Share"));
    const done = el("button", { type: "button", class: "link" }, "Done");
    done.addEventListener("click", () => this.dialog.close());
    form.append(el("p", { class: "form-ways" }, done));
    const attempt = async (change: () => Promise<unknown>): Promise<void> => {
      error.textContent = "";
      try {
        await change();
        await this.fillShares(list, attempt);
      } catch (cause) {
        error.textContent = cause instanceof ApiError ? cause.message : "The service cannot be reached. Please try again.";
      }
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void attempt(() => this.api.share(String(new FormData(form).get("viewer"))));
    });
    this.open(form);
    await attempt(async () => undefined);
  }

  private async fillShares(list: HTMLElement, attempt: (change: () => Promise<unknown>) => Promise<void>): Promise<void> {
    const { shares } = await this.api.shares();
    const rows = shares.map((share) => {
      const revoke = el("button", { type: "button", class: "link" }, "Revoke");
      revoke.addEventListener("click", () => void attempt(() => this.api.unshare(share)));
      return el("li", {}, el("span", {}, share.viewer, share.device === null ? "" : ` · only ${share.device}`), revoke);
    });
    list.replaceChildren(...(rows.length > 0 ? rows : [el("li", { class: "muted" }, "Nobody else sees your vessels.")]));
  }

  private open(form: HTMLFormElement): void {
    this.dialog.replaceChildren(form);
    if (!this.dialog.open) this.dialog.showModal();
    form.querySelector("input")?.focus();
  }
}

function field(label: string, attributes: Record<string, string>): HTMLElement {
  return el("label", { class: "field" }, el("span", {}, label), el("input", attributes));
}
