// Updates the page live, switches tabs without a reload, and adds keyboard shortcuts. All else works without this script.
"use strict";

(() => {
  /** Load the page at `address`; null if that fails. */
  async function load(address) {
    try {
      const response = await fetch(address, { headers: { Accept: "text/html", "X-Inbox-Refresh": "1" } });
      return response.ok ? new DOMParser().parseFromString(await response.text(), "text/html") : null;
    } catch {
      return null;
    }
  }

  /** Replace `old` by `fresh`, and keep the selection, and the focus on the same control. */
  function replace(old, fresh) {
    // A frame whose server ended before it had loaded shows the browser's own error, which no script may read.
    const lost = [...old.querySelectorAll("iframe")].some((frame) => !frame.contentDocument);
    if (!lost && plain(old) === plain(fresh)) return;
    const focus = old.contains(document.activeElement) ? identify(document.activeElement) : null;
    if (old.querySelector("details[open]")) fresh.querySelector("details")?.setAttribute("open", "");
    for (const box of old.querySelectorAll(".pick input:checked")) {
      const same = fresh.querySelector(`.pick input[value="${box.value}"]`);
      if (same) same.checked = true;
    }
    old.replaceWith(document.adoptNode(fresh));
    keepInput(fresh);
    count();
    if (focus) [...fresh.querySelectorAll(focus.selector)].find((one) => identify(one).text === focus.text)?.focus();
  }

  const edited = "input:not([type=checkbox], [type=hidden]), textarea, select";

  const typed = new Map();
  document.addEventListener("input", ({ target }) => target.matches(edited) && typed.set(target.name, target.value));

  /** Put what has been typed, and not been sent, into the fields of a fresh element. */
  function keepInput(fresh) {
    for (const field of fresh.querySelectorAll(edited)) field.value = typed.get(field.name) ?? field.value;
  }

  /** The markup as the server sends it: without the heights of frames. */
  const plain = (element) => element.outerHTML.replaceAll(/(<iframe[^>]*?) style="[^"]*"/g, "$1");

  function identify(element) {
    const selector = element.tagName.toLowerCase();
    if (element.type === "checkbox") return { selector, text: element.value };
    if (element.matches(edited)) return { selector, text: element.name };
    return { selector, text: element.dataset.soft === undefined && element.getAttribute("href") || element.textContent };
  }

  const subjects = (root) =>
    new Map([...root.querySelectorAll(".messages a")].map((row) => [row.href, row.querySelector(".subject").textContent]));

  /** Announce new messages to screen readers. */
  function announce(before) {
    const added = [...subjects(document)].filter(([address]) => !before.has(address));
    if (added.length) document.getElementById("news").textContent = `New mail: ${added.map((one) => one[1]).join(", ")}`;
  }

  let refreshing = false;
  let again = false;

  /** Update the live elements; changes during an update cause one more update. */
  async function refresh() {
    again = refreshing;
    if (refreshing) return;
    refreshing = true;
    await update();
    refreshing = false;
    if (again) refresh();
  }

  async function update() {
    const page = await load(location.href);
    if (!page) return;
    const before = subjects(document);
    for (const old of document.querySelectorAll("[data-live]")) {
      const fresh = page.getElementById(old.id);
      if (fresh) replace(old, fresh);
    }
    document.title = page.title;
    announce(before);
    if (page.body.dataset.events !== events) {
      events = page.body.dataset.events;
      disconnect();
      connect();
    }
  }

  const RETRY = 2000; // milliseconds

  let events = document.body.dataset.events;
  let source = null;

  function disconnect() {
    source?.close();
    source = null;
  }

  // Browsers open only six connections to one server, so a hidden tab closes its own.
  function connect() {
    if (document.hidden) {
      disconnect();
    } else if (events !== undefined && !source) {
      source = new EventSource(events);
      source.onopen = refresh;
      source.onmessage = refresh;
      source.onerror = reconnect;
    }
  }

  /** Connect again where the browser gives up: a server that starts again may answer with an error for a while. */
  function reconnect() {
    if (source?.readyState !== EventSource.CLOSED) return;
    disconnect();
    setTimeout(connect, RETRY);
  }

  document.addEventListener("visibilitychange", connect);
  window.addEventListener("pagehide", disconnect);
  connect();

  const LEAST = 150, MOST = 30000; // pixels

  /** Read a property of a message's document, also where the message has elements that are named like it. */
  const read = (frame, name) => frame.contentDocument && Reflect.get(Document.prototype, name, frame.contentDocument);

  /** Make a frame as high as its content, which is measured in a low frame, because some content fills any frame. */
  function fit(frame) {
    const view = read(frame, "scrollingElement") ?? read(frame, "documentElement");
    if (!view) return;
    const top = window.scrollY;
    frame.style.height = `${LEAST}px`;
    const scrollbar = Math.max(frame.clientHeight - view.clientHeight, 0);
    frame.style.height = `${Math.min(view.scrollHeight + scrollbar, MOST)}px`;
    window.scrollTo(window.scrollX, top);
  }

  const followed = new WeakSet();

  /** Keep a frame's height when images arrive, or the window's width changes. */
  function follow(frame) {
    const root = read(frame, "documentElement");
    if (!root || followed.has(root)) return;
    followed.add(root);
    new ResizeObserver(() => fit(frame)).observe(root);
  }

  // The event of a frame does not bubble, but can be captured.
  document.addEventListener("load", ({ target }) => {
    if (target.tagName !== "IFRAME") return;
    fit(target);
    follow(target);
  }, true);
  for (const frame of document.querySelectorAll("iframe")) follow(frame);

  document.addEventListener("click", async (click) => {
    const link = click.target.closest("a[data-soft]");
    if (!link || click.ctrlKey || click.metaKey || click.shiftKey || click.button) return;
    click.preventDefault();
    const page = await load(link.href);
    const view = document.getElementById("view");
    const fresh = page?.getElementById("view");
    if (!fresh) {
      location.assign(link.href);
      return;
    }
    history.replaceState(null, "", link.href);
    replace(view, fresh);
  });

  const rows = () => [...document.querySelectorAll(".messages li")];
  const picked = () => document.querySelectorAll(".pick input:checked");
  const currentRow = () => document.activeElement.closest(".messages li");
  const focusRow = (row) => row?.querySelector("a").focus();

  /** Show how many messages are selected. */
  function count() {
    const text = picked().length ? `${picked().length} selected` : "";
    const shown = document.getElementById("selected");
    if (shown && shown.textContent !== text) shown.textContent = text;
  }

  function pickAll(all) {
    for (const row of rows()) row.querySelector(".pick input").checked = all;
    count();
  }

  /** Send what `button` does with the selected messages, or else with the one that has the focus; then stay there. */
  async function change(button) {
    const row = currentRow();
    if (!picked().length && !row) return;
    if (!picked().length) row.querySelector(".pick input").checked = true;
    const place = Math.max(rows().indexOf(row), 0);
    const body = new URLSearchParams(new FormData(button.form, button));
    pickAll(false);
    // The form has fields named "action", which hide its property.
    await fetch(button.form.getAttribute("action"), { method: "POST", body, redirect: "manual" });
    await update();
    focusRow(rows()[Math.min(place, rows().length - 1)]);
  }

  /** Move the focus by `step` rows, or in a message to the next one. */
  function move(step, key) {
    const all = rows();
    if (!all.length) document.querySelector(`[data-key="${key}"]`)?.click();
    else focusRow(all[currentRow() ? all.indexOf(currentRow()) + step : 0]);
  }

  function press(key) {
    const button = document.querySelector(`[data-key="${key}"]`);
    if (button?.form?.id === "selection") change(button);
    else button?.click();
  }

  const search = () => document.querySelector(".search input[type=search]");
  const help = document.getElementById("keys");
  const shortcuts = {
    "/": () => search()?.select(),
    j: () => move(1, "j"),
    k: () => move(-1, "k"),
    o: () => currentRow()?.querySelector("a").click(),
    x: () => currentRow()?.querySelector(".pick input").click(),
    u: () => press("u"),
    r: () => press("r"),
    e: () => press("e"),
    "?": () => help.showModal(),
  };

  const stored = "openviper-inbox-keys";
  const box = document.getElementById("use-keys");
  box.checked = localStorage.getItem(stored) !== "off";
  box.addEventListener("change", () => localStorage.setItem(stored, box.checked ? "on" : "off"));

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || help.open) return;
    const typing = event.target.matches?.("input:not([type=checkbox]), textarea, select");
    if (typing || !box.checked || !Object.hasOwn(shortcuts, event.key)) return;
    event.preventDefault();
    shortcuts[event.key]();
  });

  let lastPicked = null;

  /** Select or deselect, as `box` is, the messages from the one that was clicked last to that of `box`. */
  function pickRange(box) {
    const boxes = rows().map((row) => row.querySelector(".pick input"));
    const ends = [boxes.indexOf(box), boxes.findIndex((one) => one.value === lastPicked)].sort((a, b) => a - b);
    if (ends[0] >= 0) for (const one of boxes.slice(ends[0], ends[1])) one.checked = box.checked;
    count();
  }

  /** Copy the text below the button; without the right to, as on pages without TLS, select it. */
  async function copy(button) {
    const text = button.closest("p").nextElementSibling;
    const lines = [...text.querySelectorAll(".line")];
    try {
      await navigator.clipboard.writeText(lines.length ? lines.map((line) => line.textContent).join("\n") : text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
    }
  }

  document.addEventListener("click", (click) => {
    const { target } = click;
    if (target.id === "show-keys") help.showModal();
    if (target.closest("#select-all")) pickAll(picked().length < rows().length);
    if (target.matches("[data-copy]")) copy(target);
    if (!target.matches(".pick input")) return;
    if (click.shiftKey) pickRange(target);
    lastPicked = target.value;
  });
  document.addEventListener("change", count);

  document.addEventListener("keydown", (key) => {
    const row = key.target.closest?.(".messages li");
    const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[key.key];
    if (!row || !next) return;
    key.preventDefault();
    row[next]?.querySelector("a").focus();
  });
})();
