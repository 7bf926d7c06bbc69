// Updates the page live and switches tabs without a reload. Everything works without this script.
"use strict";

(() => {
  const events = document.body.dataset.events;

  /** Load the page at `address`; null if that fails. */
  async function load(address) {
    try {
      const response = await fetch(address, { headers: { Accept: "text/html" } });
      return response.ok ? new DOMParser().parseFromString(await response.text(), "text/html") : null;
    } catch {
      return null;
    }
  }

  /** Replace `old` by `fresh`, and keep the focus on the same control. */
  function replace(old, fresh) {
    if (plain(old) === plain(fresh)) return;
    const focus = old.contains(document.activeElement) ? identify(document.activeElement) : null;
    if (old.querySelector("details[open]")) fresh.querySelector("details")?.setAttribute("open", "");
    old.replaceWith(document.adoptNode(fresh));
    if (focus) [...fresh.querySelectorAll(focus.selector)].find((one) => identify(one).text === focus.text)?.focus();
  }

  /** The markup as the server sends it: without the heights of frames. */
  const plain = (element) => element.outerHTML.replaceAll(/(<iframe[^>]*?) style="[^"]*"/g, "$1");

  function identify(element) {
    const selector = element.tagName.toLowerCase();
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
  }

  let source = null;

  // Browsers open only six connections to one server, so a hidden tab closes its own.
  function connect() {
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (events !== undefined && !source) {
      source = new EventSource(events);
      source.onopen = refresh;
      source.onmessage = refresh;
    }
  }

  document.addEventListener("visibilitychange", connect);
  window.addEventListener("pagehide", () => source?.close());
  connect();

  const LEAST = 150, MOST = 30000; // pixels

  /** Make a frame as high as its content, which is measured in a low frame, because some content fills any frame. */
  function fit(frame) {
    const view = frame.contentDocument?.scrollingElement ?? frame.contentDocument?.documentElement;
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
    const root = frame.contentDocument?.documentElement;
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

  document.addEventListener("keydown", (key) => {
    const row = key.target.closest?.(".messages li");
    const next = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[key.key];
    if (!row || !next) return;
    key.preventDefault();
    row[next]?.querySelector("a").focus();
  });
})();
