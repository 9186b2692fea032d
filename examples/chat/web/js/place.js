// The open room in the address: a reload stays in it, and on a phone the browser's own Back leads to the list of rooms.
// A history entry of ours has a state; without one there is nothing of ours to go back to.

const ROOM = /^#room-(\d+)$/;

export function roomInAddress() {
  const found = ROOM.exec(location.hash);
  return found ? Number(found[1]) : null;
}

// `stacked`: the room lies over the list, so Back takes it away.
export function enterRoom(id, stacked) {
  const address = `#room-${id}`;
  if (location.hash === address) return;
  if (stacked && !history.state) history.pushState({ room: true }, "", address);
  else history.replaceState(history.state, "", address);
}

// Back to the list; `moved` is called when the address has no room any more, here or by `popstate`.
export function leaveRoom(moved) {
  if (history.state) return history.back();
  forgetRoom();
  moved();
}

export function forgetRoom() {
  history.replaceState(null, "", location.pathname + location.search);
}
