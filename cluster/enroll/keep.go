package enroll

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// Names of the files in a generation.
const (
	certName  = "proxy.crt"
	keyName   = "proxy.key"
	trustName = "trust.pem"
	current   = "current"
)

// Keeper keeps a pod's certificate in a directory, renewed. The three files are written into a new directory each time, and the link `current` is then
// renamed onto it: whoever reads through the link reads files that fit together, and whoever watches the directory sees one change.
type Keeper struct {
	Client *Client
	Dir    string
	Log    *slog.Logger
	Now    func() time.Time
	// Poll is how often the authority's file is looked at, and the longest pause before another try.
	Poll time.Duration
}

// CertFile, KeyFile and TrustFile are the present files.
func (k *Keeper) CertFile() string { return filepath.Join(k.Dir, current, certName) }

// KeyFile is the certificate's key.
func (k *Keeper) KeyFile() string { return filepath.Join(k.Dir, current, keyName) }

// TrustFile holds whom to trust.
func (k *Keeper) TrustFile() string { return filepath.Join(k.Dir, current, trustName) }

// Start returns when there is a certificate that is valid: at once where the directory holds one, else as soon as it could be got.
func (k *Keeper) Start(ctx context.Context) error {
	if err := os.MkdirAll(k.Dir, 0o700); err != nil {
		return fmt.Errorf("directory of the certificate: %w", err)
	}
	have, err := k.load()
	if err == nil {
		k.Log.Info("the certificate of an earlier start is still valid", "until", have.Leaf.NotAfter)
		if k.trustMoved() { // or its file is empty, as after a crash of the node: Envoy begins with what is there
			return k.restore()
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		k.Log.Info("another certificate is needed", "reason", err)
	}
	return k.get(ctx, nil)
}

// get tries until there is a new certificate. One to renew is shown while it is good: a replica refuses the handshake of who shows one that has ended, or that its authority has not signed, and a token needs none.
func (k *Keeper) get(ctx context.Context, have *tls.Certificate) error {
	for pause := time.Second / 4; ; pause = min(2*pause, k.Poll) {
		if have != nil && (k.ended(have.Leaf) || k.outlived(have.Leaf)) {
			have = nil
		}
		cert, key, err := k.Client.Get(ctx, have)
		if err == nil && (have == nil || outlasts(cert, key, have)) {
			err = k.store(cert, key)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		k.Log.Warn("no new certificate, it is tried again", "in", pause, "err", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Run renews until ctx ends: the certificate at about half of its life, or when its authority is not the one to trust any more, as after Fleetgate was installed anew; the trust when its file changes.
func (k *Keeper) Run(ctx context.Context) {
	tick := time.NewTicker(k.Poll)
	defer tick.Stop()
	share := 0.4 + 0.2*rand.Float64() // a fleet that started together does not renew together
	for {
		have, err := k.load()
		switch {
		case err != nil:
			k.Log.Warn("the certificate cannot be used any more", "err", err)
			err = k.get(ctx, nil)
		case k.outlived(have.Leaf):
			k.Log.Info("the authority of the certificate has been replaced")
			err = k.get(ctx, nil)
		case k.trustMoved():
			err = k.restore()
		case k.Now().After(due(have.Leaf, share)):
			err = k.get(ctx, have)
		}
		if err != nil && ctx.Err() == nil {
			k.Log.Warn("the certificate could not be stored", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// outlasts tells whether a renewal has won anything: near Longest, one without a token has not.
func outlasts(cert, key []byte, have *tls.Certificate) bool {
	next, err := tls.X509KeyPair(cert, key)
	return err == nil && next.Leaf.NotAfter.After(have.Leaf.NotAfter)
}

// due is when a certificate is renewed. It is counted from the end, because a renewal keeps the beginning.
func due(leaf *x509.Certificate, share float64) time.Time {
	life := min(Life, leaf.NotAfter.Sub(leaf.NotBefore))
	return leaf.NotAfter.Add(-time.Duration((1 - share) * float64(life)))
}

// load reads the present certificate; an error where it is not there, or not valid any more.
func (k *Keeper) load() (*tls.Certificate, error) {
	cert, err := tls.LoadX509KeyPair(k.CertFile(), k.KeyFile())
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("reading the certificate: %w", err)
		}
	}
	if k.ended(cert.Leaf) {
		return nil, fmt.Errorf("the certificate ended at %s", cert.Leaf.NotAfter)
	}
	return &cert, nil
}

func (k *Keeper) ended(leaf *x509.Certificate) bool { return !k.Now().Before(leaf.NotAfter) }

// outlived tells whether none of the authorities to trust has signed a certificate: whoever trusts them refuses it.
func (k *Keeper) outlived(leaf *x509.Certificate) bool {
	rest, err := os.ReadFile(k.Client.Authority)
	for err == nil {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return true
		}
		if ca, bad := x509.ParseCertificate(block.Bytes); bad == nil && leaf.CheckSignatureFrom(ca) == nil {
			return false
		}
	}
	return false // nobody can tell
}

func (k *Keeper) trustMoved() bool {
	want, err := os.ReadFile(k.Client.Authority)
	have, err2 := os.ReadFile(k.TrustFile())
	return errors.Join(err, err2) == nil && !bytes.Equal(want, have)
}

// restore stores the present certificate anew, beside the present trust.
func (k *Keeper) restore() error {
	cert, err := os.ReadFile(k.CertFile())
	if err != nil {
		return err
	}
	key, err := os.ReadFile(k.KeyFile())
	if err != nil {
		return err
	}
	return k.store(cert, key)
}

// store writes a generation and makes it the present one.
func (k *Keeper) store(cert, key []byte) error {
	trust, err := os.ReadFile(k.Client.Authority)
	if err != nil {
		return fmt.Errorf("reading whom to trust: %w", err)
	}
	dir, err := os.MkdirTemp(k.Dir, "generation-")
	if err != nil {
		return fmt.Errorf("storing the certificate: %w", err)
	}
	for name, content := range map[string][]byte{certName: cert, keyName: key, trustName: trust} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("storing the certificate: %w", err)
		}
	}
	before, _ := os.Readlink(filepath.Join(k.Dir, current))
	link := dir + ".link"
	if err := os.Symlink(filepath.Base(dir), link); err != nil {
		return fmt.Errorf("storing the certificate: %w", err)
	}
	if err := os.Rename(link, filepath.Join(k.Dir, current)); err != nil {
		return fmt.Errorf("storing the certificate: %w", err)
	}
	k.sweep(filepath.Base(dir), before)
	return nil
}

// sweep removes generations but the present one and the one before it, which somebody may just be reading.
func (k *Keeper) sweep(keep ...string) {
	all, _ := filepath.Glob(filepath.Join(k.Dir, "generation-*"))
	for _, dir := range all {
		if base := filepath.Base(dir); base != keep[0] && base != keep[1] {
			_ = os.RemoveAll(dir)
		}
	}
}
