// A button that opens a small panel; Escape, another click or leaving by keyboard closes it. Returns the closing function.

export function popover(button: HTMLElement, panel: HTMLElement, opening: () => void): () => void {
  const close = (): void => {
    panel.hidden = true;
    button.setAttribute("aria-expanded", "false");
  };
  const open = (): void => {
    panel.hidden = false;
    button.setAttribute("aria-expanded", "true");
    opening();
  };
  button.addEventListener("click", () => (panel.hidden ? open() : close()));
  document.addEventListener("pointerdown", (event) => {
    const target = event.target as Node;
    if (!panel.hidden && !panel.contains(target) && !button.contains(target)) close();
  });
  for (const element of [button, panel])
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || panel.hidden) return;
      close();
      button.focus();
      event.stopPropagation();
    });
  return close;
}
