"use strict";
// Data comes in scripts, since a page that is opened from a disk can load nothing else.
{
  const waiting = new Map(); // what is to be called with a chunk under way
  const found = new Map();
  const coming = new Map(); // promises of chunks under way
  const LONGEST = 40; // chunks of details that are kept

  camcli.chunk = (kind, number, value) => {
    const name = `${kind}-${number}`;
    found.set(name, value);
    const details = [...found.keys()].filter((key) => key.startsWith("detail-"));
    if (details.length > LONGEST) found.delete(details[0]);
    waiting.get(name)?.(value);
    waiting.delete(name);
    coming.delete(name);
  };

  const fetched = (name, resolve, reject) => {
    waiting.set(name, resolve);
    const script = camcli.el("script", { src: `report/data/${name}.js` });
    script.addEventListener("load", () => script.remove());
    script.addEventListener("error", () => {
      coming.delete(name);
      reject(new Error(`report/data/${name}.js cannot be read`));
    });
    document.head.append(script);
  };

  const load = (kind, number) => {
    const name = `${kind}-${number}`;
    if (found.has(name)) return Promise.resolve(found.get(name));
    if (!coming.has(name)) coming.set(name, new Promise((resolve, reject) => fetched(name, resolve, reject)));
    return coming.get(name);
  };

  camcli.rows = [];
  camcli.byKey = new Map();
  camcli.ready = false;

  camcli.loadOverview = async () => {
    camcli.run = await load("overview", 0);
  };

  camcli.loadRows = async (progress) => {
    for (let number = 0; number < camcli.run.bundles; number++) {
      for (const [place, chunk] of (await load("rows", number)).entries()) {
        for (const [index, row] of chunk.entries()) {
          row.at = [number * camcli.run.bundle + place, index];
          camcli.byKey.set(row.k, row);
          camcli.rows.push(row);
        }
      }
      progress();
    }
    camcli.ready = true;
    progress();
  };

  camcli.detail = async (row) => (await load("detail", row.at[0]))[row.at[1]];
}
