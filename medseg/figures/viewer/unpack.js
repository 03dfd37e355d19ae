// Decode inert blocks of gzipped base64 text in the page. Nothing is fetched.
"use strict";
const medseg = {};

medseg.bytes = function (text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
};

medseg.unpack = async function (id) {
  const block = document.getElementById(id);
  if (!block) throw new Error(`the page lacks its block ${id}`);
  const stream = new Blob([medseg.bytes(block.textContent.trim())]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
};

medseg.unpackJson = async (id) => JSON.parse(new TextDecoder().decode(await medseg.unpack(id)));

// element("a", {href: "#x", onclick: f}, "text", child): create an element; texts are never parsed as HTML.
medseg.element = function (tag, attributes = {}, ...children) {
  const svg = ["svg", "circle", "line", "g", "text", "title", "path"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
