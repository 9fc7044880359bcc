package kube

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// FromFile reads how to reach a cluster from a kubeconfig file that an operator has put there; context "" is the file's current one. What would run
// programs, send credentials in the clear or to whoever answers, or act as somebody else is refused.
func FromFile(path, context string) (*rest.Config, error) {
	file, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading kubeconfig %s: %w; name a readable kubeconfig file", path, err)
	}
	if context == "" {
		context = file.CurrentContext
	}
	c, ok := file.Contexts[context]
	if !ok || c == nil {
		return nil, fmt.Errorf("kubeconfig %s: there is no context %q; name one of its contexts with context=", path, context)
	}
	cluster, user := file.Clusters[c.Cluster], file.AuthInfos[c.AuthInfo]
	if cluster == nil || user == nil {
		return nil, fmt.Errorf("kubeconfig %s: context %q names cluster %q and user %q, and the file lacks one of them; add it", path, context, c.Cluster, c.AuthInfo)
	}
	if err := refused(cluster, user); err != nil {
		return nil, fmt.Errorf("kubeconfig %s, context %q: %w", path, context, err)
	}
	if err := clientcmd.ResolveLocalPaths(file); err != nil { // files are named relative to the kubeconfig
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return allowed(cluster, user), nil
}

// File is FromFile, later.
func File(path, context string) func() (*rest.Config, error) {
	return func() (*rest.Config, error) { return FromFile(path, context) }
}

// refused says what in a kubeconfig is not taken, and what to do instead.
func refused(c *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) error {
	server, err := url.Parse(c.Server)
	switch {
	case err != nil || server.Host == "":
		return fmt.Errorf("server %q is no address; write https://host:port", c.Server)
	case server.Scheme != "https":
		return fmt.Errorf("server %q is not https: credentials would travel in the clear; use https", c.Server)
	case c.InsecureSkipTLSVerify:
		return errors.New("insecure-skip-tls-verify would send credentials to whoever answers; give certificate-authority-data instead")
	case c.ProxyURL != "":
		return errors.New("proxy-url is not taken: the connection would depend on a third party; reach the server directly")
	case u.Exec != nil:
		return errors.New("exec would run a program in the control plane; use a token, a token file or a client certificate")
	case u.AuthProvider != nil:
		return errors.New("auth-provider is not taken; use a token, a token file or a client certificate")
	case u.Username != "" || u.Password != "":
		return errors.New("username and password are not taken; use a token, a token file or a client certificate")
	case u.Impersonate != "" || u.ImpersonateUID != "" || len(u.ImpersonateGroups) > 0 || len(u.ImpersonateUserExtra) > 0:
		return errors.New("as, as-uid, as-groups and as-user-extra are not taken; give the user rights of its own")
	}
	return nil
}

// allowed copies the fields that are taken, one by one: a field that client-go grows is not taken until somebody has looked at it.
func allowed(c *clientcmdapi.Cluster, u *clientcmdapi.AuthInfo) *rest.Config {
	return &rest.Config{
		Host: c.Server, BearerToken: u.Token, BearerTokenFile: u.TokenFile, DisableCompression: c.DisableCompression,
		TLSClientConfig: rest.TLSClientConfig{
			ServerName: c.TLSServerName,
			CAFile:     c.CertificateAuthority, CAData: c.CertificateAuthorityData,
			CertFile: u.ClientCertificate, CertData: u.ClientCertificateData,
			KeyFile: u.ClientKey, KeyData: u.ClientKeyData,
		},
	}
}

// InCluster is how to reach the cluster in which this process runs as a Pod.
func InCluster() (*rest.Config, error) {
	c, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, fmt.Errorf("in-cluster: %w; give kubeconfig=PATH where this does not run as a Pod", err)
	}
	if err != nil {
		return nil, fmt.Errorf("in-cluster: %w; mount the Pod's service account token", err)
	}
	return c, nil
}

// prepare is the connection as this package uses it. Its own rate limit is off: API Priority and Fairness of the server knows better who may ask how often.
func prepare(in *rest.Config, userAgent string) *rest.Config {
	c := rest.CopyConfig(in)
	c.QPS = -1
	c.WarningHandlerWithContext = rest.NoWarnings{} // they are meant for people who type
	c.UserAgent = userAgent
	c.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	return c
}

// request bounds requests that are answered at once.
const request = 10 * time.Second

// UserAgent names this process in a member cluster's audit log.
func UserAgent(replica string) string {
	if replica == "" {
		replica, _ = os.Hostname()
	}
	return "fleetgate/" + replica
}
