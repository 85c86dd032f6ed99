"use strict";
// From the address to a view; keys; the search.
{
  const { el } = camcli;
  const main = document.getElementById("main");
  const find = document.getElementById("find");
  const help = document.getElementById("help");
  let leaving = [];
  let shown = "";

  camcli.onleave = (...acts) => leaving.push(...acts);

  const views = {
    overview: () => camcli.showOverview(main),
    images: (_, query) => camcli.showGallery(main, query),
    image: ([key], query) => camcli.showImage(main, key, query),
    classes: (_, query) => camcli.showClasses(main, query),
    class: ([index], query) => camcli.showClass(main, Number(index), query),
  };

  const show = async () => {
    const { path, query } = camcli.place();
    const [view = "overview", ...rest] = path;
    const kind = view in views ? view : "overview";
    for (const act of leaving.splice(0)) act();
    for (const link of document.querySelectorAll("nav [data-view]")) {
      const current = link.dataset.view === { image: "images", class: "classes" }[kind] || link.dataset.view === kind;
      current ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    }
    if (document.activeElement !== find) find.value = query.get("q") ?? "";
    const focused = document.activeElement?.getAttribute("name");
    const asked = location.hash;
    try {
      await views[kind](rest, query);
    } catch (error) {
      if (location.hash === asked) main.replaceChildren(el("p", { class: "wait" }, String(error.message ?? error)));
    }
    if (location.hash !== asked) return; // what it led to since is shown by a call of its own
    const place = `${kind}/${rest.join("/")}`;
    if (place !== shown) scrollTo(0, 0);
    shown = place;
    if (focused && focused !== "") main.querySelector(`[name="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  };

  let typing = 0;
  find.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      const { path } = camcli.place();
      if (path[0] === "images" || path[0] === "classes") camcli.change({ q: find.value, page: "" });
      else location.hash = camcli.address(["images"], new URLSearchParams({ q: find.value }));
    }, 120);
  });

  const keys = [
    ["/", "search"],
    ["g", "overview"],
    ["i", "images"],
    ["c", "classes"],
    ["o", "swap image and overlay"],
    ["m", "peak, hot region and seen part"],
    ["← →", "previous and next image; in the gallery, move with all arrows"],
    ["Esc", "back to the images"],
    ["?", "this list"],
  ];
  help.append(
    el("h2", { id: "help-title" }, "Keys"),
    el("dl", {}, keys.flatMap(([key, text]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, text)])),
    el("form", { method: "dialog" }, el("button", {}, "close")),
  );
  document.getElementById("keys").addEventListener("click", () => help.showModal());

  const anywhere = {
    "/": () => find.focus(),
    "?": () => help.showModal(),
    g: () => (location.hash = "#/"),
    i: () => (location.hash = "#/images"),
    c: () => (location.hash = "#/classes"),
  };
  const swap = () => camcli.change({ show: camcli.place().query.get("show") === "image" ? "" : "image" });

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const view = camcli.place().path[0];
    const acts = { ...anywhere, ...(view === "image" ? camcli.imageKeys : {}), ...(view === "images" ? { o: swap } : {}) };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  });

  addEventListener("hashchange", show);

  const start = async () => {
    await camcli.loadOverview();
    const early = camcli.place().path;
    if (!early.length) await show();
    let last = 0;
    await camcli.loadRows(() => {
      const now = performance.now();
      if (camcli.ready || now - last > 400) {
        last = now;
        if (camcli.place().path.length) show();
      }
    });
  };
  start().catch((error) => main.replaceChildren(el("p", { class: "wait" }, String(error.message ?? error))));
}
