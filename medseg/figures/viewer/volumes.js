// Unpack the volumes of views on demand, and keep those of the last three views.
"use strict";
medseg.volumes = (function () {
  const DECODED_AT_ONCE = 3;
  const decoded = new Map(); // view number → name → promise of bytes; the least recently used view leaves first

  function get(number, name) {
    const held = decoded.get(number) || new Map();
    decoded.delete(number); decoded.set(number, held);
    while (decoded.size > DECODED_AT_ONCE) decoded.delete(decoded.keys().next().value);
    if (!held.has(name)) {
      const bytes = medseg.unpack(`v${number}-${name}`);
      bytes.catch(() => held.delete(name));
      held.set(name, bytes);
    }
    return held.get(name);
  }

  return { get, decodedNow: () => [...decoded.keys()] };
})();
