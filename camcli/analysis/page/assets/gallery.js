"use strict";
// All images that match, of which only those in sight are in the document.
{
  const { el, name, percent, count, plain } = camcli;
  const SORTS = {
    path: ["path", (a, b) => (a.id < b.id ? -1 : a.id > b.id ? 1 : 0)],
    least: ["least certain first", (a, b) => (a.p ?? 2) - (b.p ?? 2)],
    most: ["most certain first", (a, b) => (b.p ?? -1) - (a.p ?? -1)],
    margin: ["closest call first", (a, b) => (a.g ?? 2) - (b.g ?? 2)],
    class: ["class", (a, b) => (a.l ?? "~").localeCompare(b.l ?? "~")],
    large: ["largest first", (a, b) => (b.w ?? 0) * (b.h ?? 0) - (a.w ?? 0) * (a.h ?? 0)],
  };
  const SIZES = { small: 132, medium: 188, large: 280 };

  // Which of an image's heatmaps is of that method and class, empty for any; what is the same for all classes is of each.
  camcli.overlayAt = (row, method, target) => {
    const found = row.x.findIndex(([of, index]) => (!method || of === method) && (target === "" || index === null || String(index) === target));
    return Math.max(found, 0);
  };

  // The image or one of its overlays, out of one file that holds them side by side.
  camcli.thumb = (row, { side, index = 0 }) => {
    const box = el("span", { class: "thumb", "aria-hidden": "true" });
    if (!row.t) return box;
    box.style.aspectRatio = `${row.w} / ${row.h}`;
    box.style.setProperty(row.w >= row.h ? "width" : "height", "100%");
    box.style.backgroundImage = `url("${row.u}")`;
    box.style.backgroundSize = `${100 * row.t}% 100%`;
    turn(box, row, side, index);
    return box;
  };

  const turn = (box, row, side, index) => {
    const whole = row.t > row.x.length;
    const at = side === "image" && whole ? 0 : Math.min(index + (whole ? 1 : 0), row.t - 1);
    box.style.backgroundPosition = row.t > 1 ? `${(100 * at) / (row.t - 1)}% 0` : "0 0";
  };

  camcli.tile = (row, { query = "", method = "", target = "", side = "overlay" } = {}) => {
    const href = `#/image/${row.k}${query ? "?" + query : ""}`;
    if (row.e !== undefined) {
      return el(
        "a",
        { class: "tile failed", href, "data-key": row.k, title: plain(row.m), "aria-label": `${plain(row.id)}: failed, ${plain(row.e)}` },
        el("span", { class: "frame" }, el("span", { class: "cross", "aria-hidden": "true" }, "✕")),
        el("span", { class: "what" }, el("b", {}, plain(row.e))),
        name(row.id, { class: "path" }),
      );
    }
    const index = camcli.overlayAt(row, method, target);
    const thumb = camcli.thumb(row, { side, index });
    const to = (shown) => () => turn(thumb, row, shown, index);
    const other = side === "image" ? "overlay" : "image";
    return el(
      "a",
      {
        class: "tile",
        href,
        "data-key": row.k,
        "aria-label": `${plain(row.id)}: ${plain(row.l)}, ${percent(row.p)}${row.f.length ? ", " + row.f.join(", ") : ""}`,
        onpointerenter: to(other),
        onpointerleave: to(side),
        onfocus: to(other),
        onblur: to(side),
      },
      el("span", { class: "frame" }, thumb),
      el("span", { class: "what" }, name(row.l, { class: "label" }), el("span", { class: row.p < 0.5 ? "number low" : "number" }, percent(row.p))),
      name(row.id, { class: "path" }),
    );
  };

  const within = (value, from, to) => (from === null || value >= Number(from)) && (to === null || value <= Number(to));

  camcli.matching = (query) => {
    const words = (query.get("q") ?? "").toLowerCase().split(/\s+/).filter(Boolean);
    const [status, wanted, method, target, flag] = ["status", "class", "method", "target", "flag"].map((key) => query.get(key));
    const [from, to, margin] = ["from", "to", "margin"].map((key) => query.get(key));
    const ofImages = wanted !== null || from !== null || to !== null || margin !== null || flag || method || target;
    const fits = (row) => {
      if (words.length) {
        row.text ??= `${row.id} ${row.l ?? row.e}`.toLowerCase();
        if (!words.every((word) => row.text.includes(word))) return false;
      }
      const failed = row.e !== undefined;
      if (status) {
        if ((status === "failed") !== failed) return false;
      }
      if (failed) return !ofImages;
      if (wanted !== null && String(row.c) !== wanted) return false;
      if (!within(row.p, from, to) || !within(row.g, null, margin)) return false;
      if (flag && !row.f.includes(flag)) return false;
      return (!method && !target) || row.x.some(([of, index]) => (!method || of === method) && (!target || String(index) === target));
    };
    const found = camcli.rows.filter(fits);
    const sort = SORTS[query.get("sort") ?? "path"] ?? SORTS.path;
    return found.sort(sort[1]);
  };

  const choice = (key, label, options, query) => {
    const chosen = query.get(key) ?? "";
    const change = (event) => camcli.change({ [key]: event.target.value });
    const made = options.map(([value, text]) => el("option", { value, selected: value === chosen }, text));
    return el("label", {}, el("span", {}, label), el("select", { onchange: change, name: key }, made));
  };

  const number = (key, label, query) => {
    const change = (event) => camcli.change({ [key]: event.target.value === "" ? "" : String(Number(event.target.value) / 100) });
    const value = query.get(key) === null ? "" : Math.round(10000 * Number(query.get(key))) / 100;
    return el("label", {}, el("span", {}, label), el("input", { type: "number", min: 0, max: 100, step: "any", value, name: key, onchange: change, placeholder: "%" }));
  };

  const filters = (query) => {
    const kinds = new Map();
    const targets = new Map();
    for (const row of camcli.rows.slice(0, 2000)) for (const [method, index] of row.x ?? []) kinds.set(method, 1), index !== null && targets.set(index, 1);
    const labels = new Map(camcli.run.classes.map(([index, label]) => [String(index), label]));
    const any = (text, list) => [["", text], ...list];
    const classes = camcli.run.classes.slice(0, 300).map(([index, label, images]) => [String(index), `${plain(label).slice(0, 40)} (${images})`]);
    const flags = camcli.run.look.filter((section) => section.flag).map((section) => [section.flag, `${section.flag} (${section.images})`]);
    const named = [...targets.keys()].slice(0, 300).map((index) => [String(index), plain(labels.get(String(index)) ?? index).slice(0, 40)]);
    return el(
      "form",
      { class: "filters", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
      choice("sort", "sort", Object.entries(SORTS).map(([key, [text]]) => [key, text]), query),
      choice("class", "class", any("any", classes), query),
      number("from", "from", query),
      number("to", "to", query),
      number("margin", "margin below", query),
      choice("flag", "flag", any("any", flags), query),
      choice("status", "status", any("any", [["done", "explained"], ["failed", "failed"]]), query),
      kinds.size > 1 ? choice("method", "method", any("any", [...kinds.keys()].map((kind) => [kind, kind])), query) : null,
      targets.size > 1 && targets.size <= 300 ? choice("target", "target", any("any", named), query) : null,
      choice("show", "show", [["overlay", "overlay"], ["image", "image"]], query),
      choice("size", "size", Object.keys(SIZES).map((size) => [size === "medium" ? "" : size, size]), query),
      el("button", { type: "button", onclick: () => (location.hash = "#/images") }, "reset"),
    );
  };

  // Tiles in absolute places, so that a list of any length has the height that its scroll bar says.
  camcli.grid = (found, query, side) => {
    const list = el("div", { class: "tiles virtual", role: "list", "aria-label": "Images" });
    const shown = new Map();
    const look = { query: query.toString(), method: query.get("method") ?? "", target: query.get("target") ?? "", side: query.get("show") ?? "overlay" };
    let columns = 1;
    let [wide, tall] = [side, side];
    const measure = () => {
      columns = Math.max(2, Math.floor((list.clientWidth + 12) / (side + 12)));
      wide = (list.clientWidth - 12 * (columns - 1)) / columns;
      tall = wide + 52;
      list.style.height = `${Math.ceil(found.length / columns) * tall}px`;
    };
    const draw = () => {
      const top = -list.getBoundingClientRect().top;
      const first = Math.max(0, Math.floor((top - innerHeight) / tall)) * columns;
      const last = Math.min(found.length, Math.ceil((top + 2 * innerHeight) / tall) * columns);
      for (const [index, tile] of shown) if (index < first || index >= last) tile.remove(), shown.delete(index);
      for (let index = first; index < last; index++) {
        const tile = shown.get(index) ?? camcli.tile(found[index], look);
        if (!shown.has(index)) {
          tile.dataset.index = index;
          tile.setAttribute("role", "listitem");
          tile.setAttribute("aria-posinset", index + 1);
          tile.setAttribute("aria-setsize", found.length);
          list.append(tile);
          shown.set(index, tile);
        }
        tile.style.width = `${wide}px`;
        tile.style.transform = `translate(${(index % columns) * (wide + 12)}px, ${Math.floor(index / columns) * tall}px)`;
      }
    };
    const again = () => (measure(), draw());
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
      const from = Number(event.target.closest("[data-index]")?.dataset.index);
      if (!step || Number.isNaN(from) || !found[from + step]) return;
      event.preventDefault();
      const place = list.getBoundingClientRect().top + scrollY + Math.floor((from + step) / columns) * tall;
      if (place < scrollY + 60 || place + tall > scrollY + innerHeight) scrollTo({ top: place - innerHeight / 3 });
      draw();
      shown.get(from + step)?.focus();
    });
    camcli.onleave(addEventListenerUntil("scroll", draw), addEventListenerUntil("resize", again));
    requestAnimationFrame(again);
    return list;
  };

  const addEventListenerUntil = (kind, act) => {
    addEventListener(kind, act, { passive: true });
    return () => removeEventListener(kind, act);
  };

  camcli.showGallery = (main, query) => {
    const found = camcli.matching(query);
    const said = `${count(found.length, "image")}${found.length < camcli.rows.length ? ` of ${camcli.rows.length.toLocaleString("en")}` : ""}`;
    camcli.say(said);
    main.replaceChildren(
      el("h1", { class: "unseen" }, "Images"),
      el("details", { class: "folded", open: innerWidth > 760 || main.querySelector(".folded[open]") !== null }, el("summary", {}, "Filters"), filters(query)),
      el("p", { class: "tally" }, said, camcli.ready ? null : " … more are being read"),
      found.length ? camcli.grid(found, query, SIZES[query.get("size")] ?? SIZES.medium) : el("p", { class: "wait" }, "No image matches."),
    );
  };
}
