"use strict";
// Small tools: elements without markup from data, text that cannot mislead, the address as the view's state.
const camcli = {};

camcli.el = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
};

camcli.svg = (name, attributes = {}, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// Control characters, marks that turn the direction of writing, and what is no character are shown by their numbers.
camcli.plain = (text) =>
  String(text).replace(
    /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]|\p{Surrogate}/gu,
    (mark) => "\\u" + mark.codePointAt(0).toString(16).padStart(4, "0"),
  );

camcli.name = (text, attributes = {}) => camcli.el("bdi", { ...attributes, title: camcli.plain(text) }, camcli.plain(text));

camcli.percent = (share) => (share >= 0.9995 || share < 0.0005 ? share.toFixed(share ? 1 : 0) * 100 + "%" : (share * 100).toFixed(1) + "%");

camcli.count = (number, one, many = one + "s") => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

camcli.say = (text) => {
  document.getElementById("said").textContent = text;
};

// The address after # is the whole state of a view, so that a link shows what its sender saw.
camcli.place = () => {
  const [path, query = ""] = (location.hash.slice(1) || "/").split("?");
  return { path: path.split("/").filter(Boolean).map(decodeURIComponent), query: new URLSearchParams(query) };
};

camcli.address = (path, query) => {
  const text = new URLSearchParams([...query].filter(([, value]) => value !== "")).toString();
  return "#/" + path.map(encodeURIComponent).join("/") + (text ? "?" + text : "");
};

camcli.change = (changes, replace = true) => {
  const { path, query } = camcli.place();
  for (const [key, value] of Object.entries(changes)) value === "" || value === null ? query.delete(key) : query.set(key, value);
  const address = camcli.address(path, query);
  if (replace) location.replace(address);
  else location.hash = address;
};
